"""One directory of an archive in an object store, to look into, and what is left there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from bulkfetch.errors import ConnectionFailedError
from bulkfetch.plan import Held, Place
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

    def __init__(self, store: Store, path: str, found: Mapping[str, Object] | None = None) -> None:
        """`found` are its objects by their names, where it was listed already."""
        self._store = store
        self._path = path
        if found is None:
            found = {one.name: one for one in store.level(path)[1]}
        self._found = found

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


class Leftovers:
    """Images without a sidecar, under names that one run alone gives: what a kill leaves.

    Until there is a sidecar, another shard may be about to write the one that names such an object;
    then none ever will but that one. It is removed as far as that is allowed; else it is stray.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[Place, Sequence[str]] = {}

    def note(self, place: Place, held: Held | None, names: Collection[str]) -> None:
        """Note what there is among the names in a directory; beside a sound image, remove it."""
        named = held.state.file if held and held.state else None
        self._found[place] = [
            name for name in names if place.is_apart(name) and not (named and named.path == name)
        ]
        if (held and held.damage) or not self._found[place]:
            del self._found[place]
        elif named:
            self.remove(place)

    def remove(self, place: Place) -> None:
        """Remove what was noted beside a sidecar that was not there then."""
        for name in self._found.pop(place, ()):
            self.remove_own(place, name)

    def remove_own(self, place: Place, name: str) -> None:
        """Remove an image that no sidecar names, if only one run gives such a name."""
        if place.is_apart(name):
            with suppress(OSError):
                self._store.delete(f"{place.directory}/{name}")
