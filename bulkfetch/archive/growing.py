"""Files of a run that grow, in an object store, which cannot append."""

from __future__ import annotations

import tempfile
import time
from typing import IO

from bulkfetch.archive.segments import segment_name
from bulkfetch.stores.store import Store

# A segment is put when it is so long, or when its first line has waited so long.
_SEGMENT_BYTES = 2**20
_SEGMENT_S = 10.0
_PART_BYTES = 2**23


class StoreJournal:
    """Lines by segments: the first at once, the next when they are long or old enough.

    What is not put yet when the process is killed is lost; sidecars tell the same.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path
        self._number = 0
        self._put_at = 0.0
        self._waiting = b""

    @property
    def name(self) -> str:
        """See `Growing.name`."""
        return f"{self._store.url}/{self._path}"

    def append(self, data: bytes, *, durable: bool) -> int:
        """See `Growing.append`."""
        segment = self._waiting + data
        is_due = (
            durable
            or len(segment) >= _SEGMENT_BYTES
            or not self._number
            or time.monotonic() - self._put_at > _SEGMENT_S
        )
        if is_due and segment:
            self._store.create(segment_name(self._path, self._number + 1), segment)
            self._number += 1
            self._put_at = time.monotonic()
            segment = b""
        self._waiting = segment
        return len(data)

    def close(self, *, durable: bool) -> None:  # noqa: ARG002  a store has one way
        """See `Growing.close`."""
        self.append(b"", durable=True)


class StoreFile:
    """A file that is put when it has come to its end; until then it is a temporary one here."""

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path
        self._file: IO[bytes] | None = None

    @property
    def name(self) -> str:
        """See `Growing.name`."""
        return f"{self._store.url}/{self._path}"

    def append(self, data: bytes, *, durable: bool) -> int:  # noqa: ARG002  it is put at its end
        """See `Growing.append`."""
        if self._file is None and data:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed below
        return self._file.write(data) if self._file else 0

    def close(self, *, durable: bool) -> None:  # noqa: ARG002  a store has one way
        """See `Growing.close`."""
        if (file := self._file) is not None:
            with file:
                file.seek(0)
                self._store.put_long(self._path, iter(lambda: file.read(_PART_BYTES), b""))
