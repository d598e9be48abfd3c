"""An archive in an object store, to read."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

from bulkfetch.archive.identity import IDENTITY_PATH
from bulkfetch.archive.lease import leases
from bulkfetch.archive.segments import Part, joined, segments_of, whole_name
from bulkfetch.errors import DestinationError
from bulkfetch.models import Shard
from bulkfetch.paths import PRIVATE
from bulkfetch.stores.store import Object, Store

# What is no longer is read at once.
_SMALL_BYTES = 2**23


class StoreTree:
    """What lies in an object store; see `Tree`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def name(self) -> str:
        """See `Tree.name`."""
        return self.store.url

    def names(self, directory: str) -> list[str]:
        """See `Tree.names`."""
        below, objects = self.store.level(directory)
        if not below and not objects:
            raise FileNotFoundError(errno.ENOENT, "there is no such directory")
        return sorted({*below, *(whole_name(found.name) for found in objects)})

    def folders(self, depth: int) -> Generator[tuple[str, Collection[str]]]:
        """See `Tree.folders`: by one listing, in the order of names."""
        for path, found in leaves_of(self.store, depth, lambda _: None):
            yield path, [name for name in found if "/" not in name]

    def open(self, path: str) -> BinaryIO:
        """See `Tree.open`."""
        directory, _, name = path.rpartition("/")
        if name.endswith(".jsonl"):
            found = {part.name: part for part in self.store.level(directory)[1]}
            if segments := segments_of(name, list(found)):
                return joined([self._part(found[segment]) for segment in segments])
        only = self.store.head(path)
        if only.size > _SMALL_BYTES:
            return joined([self._part(only)])
        return io.BytesIO(self.store.get(path)[0])

    def flush(self, path: str) -> None:
        """See `Tree.flush`: what can be read of an object store is there to stay."""

    @contextmanager
    def still(self) -> Iterator[None]:
        """See `Tree.still`: one that begins meanwhile adds to it, and changes nothing."""
        if at_work := self.at_work():
            raise DestinationError(
                f"{self.name} is held by another run ({', '.join(at_work)}): wait for it to end"
            )
        yield

    def at_work(self) -> Mapping[str, Shard | None]:
        """See `Tree.at_work`."""
        return {
            lease.run_id: Shard.parse(lease.shard) if lease.shard else None
            for lease in leases(self.store)
            if lease.is_fresh
        }

    def _part(self, found: Object) -> Part:
        return Part(found.size, partial(self.store.range, found.path))


Leaf = tuple[str, dict[str, Object]]


def leaves_of(store: Store, depth: int, elsewhere: Callable[[str], None]) -> Iterator[Leaf]:
    """Yield the directories of images, each with its objects; `elsewhere` is told of all others.

    An object of a directory below has a "/" in its name.

    Raises:
        StoreError: it cannot be listed.
        DestinationError: it is not listed in order, or not whole.
    """
    path, found = "", dict[str, Object]()
    is_listing = False
    for listed in store.objects():
        is_listing = is_listing or listed.path == IDENTITY_PATH
        *above, _ = parts = listed.path.split("/")
        if parts[0] == PRIVATE or len(above) < depth:
            elsewhere(listed.path)
        else:
            directory = "/".join(parts[:depth])
            if directory != path:
                if f"{directory}/" < f"{path}/":
                    # Half a directory would be taken for a whole one.
                    raise DestinationError(
                        f"{store.url} is not listed in the order of names, as S3's directory "
                        "buckets are not: copy it to another bucket, or to a disk, to read it"
                    )
                if found:
                    yield path, found
                path, found = directory, {}
            found["/".join(parts[depth:])] = listed
    if found:
        yield path, found
    if not is_listing:
        # A page of somebody else's with status 200 is read as an empty listing.
        raise DestinationError(
            f"{store.url} is not listed whole: {IDENTITY_PATH} is there, and in no list; try again"
        )
