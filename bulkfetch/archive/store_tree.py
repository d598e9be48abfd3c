"""An archive in an object store, to read."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

from bulkfetch.archive.lease import leases
from bulkfetch.archive.segments import Part, joined, segments_of, whole_name
from bulkfetch.errors import DestinationError
from bulkfetch.models import Shard
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
