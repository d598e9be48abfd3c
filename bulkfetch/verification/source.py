"""A file of an archive on its way through the digests, to whoever takes it: it is read once."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence

from bulkfetch.archive import files
from bulkfetch.verification.findings import Kind

# Of what is taken; the first is that of sidecars.
ALGORITHMS = ("sha256", "sha512")
_READ_BYTES = 2**18


class FoundError(Exception):
    """What is wrong with a file turned out while it was read."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Source:
    """A file's bytes, to be read once and to the end.

    Attributes:
        state: what the operating system says of the file.
    """

    def __init__(
        self,
        state: os.stat_result,
        read: Callable[[int], bytes],
        algorithms: Sequence[str] = ALGORITHMS,
    ) -> None:
        self.state = state
        self._digests = [hashlib.new(algorithm) for algorithm in algorithms]
        self._read = read
        self._left = state.st_size

    def read(self, size: int = _READ_BYTES) -> bytes:
        """Return so many bytes, fewer only where the file ends.

        Raises:
            FoundError: it cannot be read, or is shorter than it was when it was opened.
        """
        wanted = min(size, self._left)
        data = b""
        while len(data) < wanted:
            try:
                more = self._read(wanted - len(data))
            except OSError as error:
                raise FoundError(Kind.unreadable, error.strerror or "it cannot be read") from error
            if not more:
                raise FoundError(Kind.changed, "it became shorter while it was read")
            data = data + more if data else more
        self._left -= wanted
        for digest in self._digests:
            digest.update(data)
        return data

    def rest(self) -> bytes:
        """Return what is left.

        Raises:
            FoundError: as `read` does.
        """
        return self.read(self._left)

    def drain(self) -> None:
        """Read what is left."""
        while self._left:
            self.read()

    def digests(self) -> tuple[bytes, ...]:
        """Return those of what was read, in the algorithms' order."""
        return tuple(digest.digest() for digest in self._digests)


def state_of(size: int, modified_at: float) -> os.stat_result:
    """Return what a system would say of a file that is in no file system; the time is Unix time."""
    at = int(modified_at)
    ns = int(modified_at * 1e9)
    told = (stat.S_IFREG | files.FILE_MODE, 0, 0, 1, 0, 0, size, at, at, at)
    return os.stat_result(told, {"st_atime_ns": ns, "st_mtime_ns": ns})


Take = Callable[[int, str, Source], None]
"""Takes a file, given its directory's descriptor, its path below the archive, and its bytes."""
