"""One directory of an archive in an object store, to look into."""

from __future__ import annotations

from collections.abc import Collection

from bulkfetch.errors import ConnectionFailedError
from bulkfetch.stores import StoreError
from bulkfetch.stores.store import Object, Store


class StoreTroubleError(ConnectionFailedError):
    """The object store failed, in a way that may pass."""

    kind = "destination"


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
