"""Journals as chains: each line has the digest of the one before, and a run names all earlier ones.

So a line that was changed or removed shows in the next one, and a journal that was cut or written
anew shows in the first line of every later run. A digest is the SHA-256 of a whole line with its
end, in hex: `sed -n 5p journal.jsonl | sha256sum` tells the fifth's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from bulkfetch.archive import files

FIRST = "journal.jsonl"
FINISHED = b'{"event":"run_finished",'
_BLOCK_BYTES = 2**16
# A run's first line grows with the runs that it names: by 110 bytes each.
_LONGEST_LINE = 2**26
RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")


def digest(line: bytes) -> str:
    """Return what the line after this one has in `previous`."""
    return hashlib.sha256(line).hexdigest()


def opened(path: Path) -> BinaryIO:
    """Open a journal to read; a link or a pipe in its place is none.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = files.open_to_read(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(descriptor, "rb")


def heads_of_runs(runs: Path, *, durable: bool) -> Mapping[str, Mapping[str, str]]:
    """Return the digest of the last line of each run's journals, by run and file name.

    Of a finished run, the first journal is enough: its last line names the heads of the others.
    With `durable`, what a killed run left is on the disk when this returns, since it is going to
    be named. What cannot be read is left out, and named by `bulkfetch verify`.
    """
    found: dict[str, Mapping[str, str]] = {}
    with suppress(FileNotFoundError):
        for run in sorted(path for path in runs.iterdir() if RUN_ID.fullmatch(path.name)):
            with suppress(OSError):
                if heads := _heads_of_run(run, durable=durable):
                    found[run.name] = heads
    return found


def heads_of_helpers(run: Path) -> Mapping[str, str]:
    """Return the digests of the last lines of a run's journals but the first."""
    heads: dict[str, str] = {}
    for path in sorted(run.glob("journal-*.jsonl")):
        if line := last_line(path):
            heads[path.name] = digest(line)
    return heads


def _heads_of_run(run: Path, *, durable: bool) -> Mapping[str, str]:
    last = last_line(run / FIRST)
    heads = {FIRST: digest(last)} if last else {}
    if last.startswith(FINISHED):
        return heads
    for path in run.glob("journal*.jsonl"):
        if durable:
            _flush(path)
    return {**heads, **heads_of_helpers(run)}


def last_line(path: Path) -> bytes:
    """Return the last whole line of a file, with its end; nothing where there is none.

    Raises:
        OSError: the file cannot be read.
    """
    blocks: list[bytes] = []
    try:
        file = opened(path)
    except FileNotFoundError:
        return b""
    with file:
        at = file.seek(0, os.SEEK_END)
        size, has_end = 0, False
        while at > 0 and size < _LONGEST_LINE:
            block_size = min(_BLOCK_BYTES, at)
            at = file.seek(at - block_size)
            block = file.read(block_size)
            if not has_end:
                # What comes after the last end of a line was cut.
                block = block[: block.rfind(b"\n") + 1]
                has_end = bool(block)
                before = block.rfind(b"\n", 0, -1)
            else:
                before = block.rfind(b"\n")
            blocks.append(block[before + 1 :])
            size += block_size
            if has_end and (before >= 0 or at == 0):
                return b"".join(reversed(blocks))
    return b""


def _flush(path: Path) -> None:
    with opened(path) as file:
        os.fsync(file.fileno())
