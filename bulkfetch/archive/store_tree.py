"""An archive in an object store, to read.

A store cannot append: a file that grows is a row of numbered segments there, `journal.000001.jsonl`
and so on, and is read here as the one file that it is.
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Mapping
from typing import BinaryIO

from bulkfetch.archive.lease import leases
from bulkfetch.models import Shard
from bulkfetch.stores.store import Object, Store

_SEGMENT = re.compile(r"(?P<stem>.+)\.(?P<number>[0-9]{6,})(?P<ending>\.jsonl)", re.DOTALL)
# What is no longer is read at once.
_SMALL_BYTES = 2**23


def segment_name(name: str, number: int) -> str:
    """Return the name of a growing file's segment, from 1."""
    stem, dot, ending = name.rpartition(".")
    return f"{stem}.{number:06}{dot}{ending}"


class StoreTree:
    """What lies in an object store; see `Tree`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """See `Tree.name`."""
        return self._store.url

    def names(self, directory: str) -> list[str]:
        """See `Tree.names`."""
        below, objects = self._store.level(directory)
        if not below and not objects:
            raise FileNotFoundError(errno.ENOENT, "there is no such directory")
        return sorted({*below, *(_whole(found.path.rpartition("/")[2]) for found in objects)})

    def open(self, path: str) -> BinaryIO:
        """See `Tree.open`."""
        directory, _, name = path.rpartition("/")
        if name.endswith(".jsonl"):
            found = self._store.level(directory)[1]
            if segments := [part for part in found if _whole(part.path) == path]:
                return self._store.opened(sorted(segments, key=_number))
        found_at = self._store.head(path)
        if found_at.size > _SMALL_BYTES:
            return self._store.opened([found_at])
        return io.BytesIO(self._store.get(path)[0])

    def flush(self, path: str) -> None:
        """See `Tree.flush`: what can be read of an object store is there to stay."""

    def at_work(self) -> Mapping[str, Shard | None]:
        """See `Tree.at_work`."""
        return {
            lease.run_id: Shard.parse(lease.shard) if lease.shard else None
            for lease in leases(self._store)
            if lease.is_fresh
        }


def _whole(name: str) -> str:
    found = _SEGMENT.fullmatch(name)
    return f"{found['stem']}{found['ending']}" if found else name


def _number(part: Object) -> int:
    found = _SEGMENT.fullmatch(part.path)
    return int(found["number"]) if found else 0
