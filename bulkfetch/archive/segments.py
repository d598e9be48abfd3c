"""Files that grew where nothing can be appended: rows of numbered segments, read as one file.

`journal.000001.jsonl`, `journal.000002.jsonl` and so on are `journal.jsonl`, in an object store and
in a copy of it on a disk.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SEGMENT = re.compile(r"(?P<stem>.+)\.(?P<number>[0-9]{6,})(?P<ending>\.jsonl)", re.DOTALL)
# Read at once, where a reader wants all of a file or its end.
_BLOCK_BYTES = 2**23
_BUFFER_BYTES = 2**20


class Part(NamedTuple):
    """Some bytes of a file: how many, and what reads so many of them from an offset on."""

    size: int
    read: Callable[[int, int], bytes]


def segment_name(name: str, number: int) -> str:
    """Return the name of a growing file's segment, from 1."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}.{number:06}{dot}{ending}"


def whole_name(name: str) -> str:
    """Return the name of the file that a segment is of; any other as it is."""
    found = _SEGMENT.fullmatch(name)
    return f"{found['stem']}{found['ending']}" if found else name


def segments_of(name: str, names: Sequence[str]) -> list[str]:
    """Return those of some names that are a file's segments, in order."""
    found = [(int(match["number"]), n) for n in names if (match := _SEGMENT.fullmatch(n))]
    return [n for _, n in sorted(found) if whole_name(n) == name]


def joined(parts: Sequence[Part]) -> BinaryIO:
    """Return parts as one file to read, one after the other."""
    return io.BufferedReader(_Joined(parts), _BUFFER_BYTES)


class _Joined(io.RawIOBase):
    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self._parts = parts
        self._size = sum(part.size for part in parts)
        self._at = 0
        self._block_at = 0
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        offset = self._at - self._block_at
        if not 0 <= offset < len(self._block):
            self._load(len(view))
            offset = 0
        data = self._block[offset : offset + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _load(self, wanted: int) -> None:
        begin = 0
        self._block_at, self._block = self._at, b""
        for part in self._parts:
            offset = self._at - begin
            if 0 <= offset < part.size:
                length = min(part.size - offset, max(wanted, _BLOCK_BYTES))
                self._block = part.read(offset, length)
                return
            begin += part.size
