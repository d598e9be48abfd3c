"""One directory of an archive in an object store, to look into."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bulkfetch.errors import ConnectionFailedError
from bulkfetch.stores import StoreError
from bulkfetch.stores.store import Object, Store

# 4 MiB. Of a million directories, two in a hundred are taken for used.
_BITS = 2**25


class StoreTroubleError(ConnectionFailedError):
    """The object store failed, in a way that may pass."""

    kind = "destination"


class Unused:
    """Which directories nothing was put into by this process, in an archive that was empty before.

    A bit stands for all whose hash leads to it, so that it takes the same room for any number of
    them: some are taken for used that are not.
    """

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def take(self, directories: Iterable[str]) -> bool:
        """Tell whether all are unused, and have them used from now on."""
        are_unused = True
        for directory in directories:
            place, bit = divmod(hash(directory) % _BITS, 8)
            are_unused = are_unused and not self._bits[place] >> bit & 1
            self._bits[place] |= 1 << bit
        return are_unused


class StoreFolder:
    """A directory of an object store, listed once; see `Folder`."""

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path
        objects = store.level(path)[1]
        self._found = {found.name: found for found in objects}

    @property
    def names(self) -> Collection[str]:
        """See `Folder.names`."""
        return self._found.keys()

    def read(self, name: str) -> bytes:
        """See `Folder.read`.

        Raises:
            StoreTroubleError: it cannot be read, which says nothing of what it holds.
        """
        try:
            return self._store.get(f"{self._path}/{name}")[0]
        except StoreError as error:
            what = f"{self._store.url}: {error.strerror}"
            raise StoreTroubleError(what, retryable=error.retryable) from None

    def size(self, name: str) -> int | None:
        """See `Folder.size`."""
        return self._object(name).size

    def sha256(self, name: str) -> str:
        """See `Folder.sha256`."""
        return self._store.sha256(self._object(name).path)

    def _object(self, name: str) -> Object:
        if name not in self._found:
            raise FileNotFoundError(name)
        return self._found[name]
