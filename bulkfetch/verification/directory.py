"""A directory of images to check, on a disk or in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bulkfetch.archive import files
from bulkfetch.archive.segments import Part, joined
from bulkfetch.verification.findings import Kind
from bulkfetch.verification.source import Source, state_of

if TYPE_CHECKING:
    # An extra.
    from bulkfetch.stores.store import Object, Store


class Entry(NamedTuple):
    """A name in a directory; where that is no file, the kind of finding, and what it is."""

    name: str
    odd: tuple[Kind, str] | None


class Directory(Protocol):
    """What lies in a directory; every method raises `OSError` where it cannot be read."""

    @property
    def descriptor(self) -> int:
        """That of the directory; -1 where it is not one of this machine."""

    def entries(self) -> Iterator[Entry]:
        """Yield what lies in it."""

    def opened(self, name: str, algorithms: Sequence[str]) -> AbstractContextManager[Source]:
        """Open a file, to be read once."""


class LocalDirectory:
    """A directory of this machine, by its descriptor; see `Directory`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def entries(self) -> Iterator[Entry]:
        """See `Directory.entries`."""
        with os.scandir(self.descriptor) as found:
            for entry in found:
                if entry.is_symlink():
                    yield Entry(entry.name, (Kind.link, "a symbolic link"))
                elif not entry.is_file(follow_symlinks=False):
                    yield Entry(entry.name, (Kind.stray, "no file"))
                else:
                    yield Entry(entry.name, None)

    @contextmanager
    def opened(self, name: str, algorithms: Sequence[str]) -> Iterator[Source]:
        """See `Directory.opened`."""
        with files.opened(name, self.descriptor) as descriptor:
            yield Source(os.fstat(descriptor), partial(os.read, descriptor), algorithms)


class StoreDirectory:
    """A directory of an object store, as it was listed; see `Directory`."""

    descriptor = -1

    def __init__(self, store: Store, found: Mapping[str, Object]) -> None:
        """`found` are the objects by their names; one in a directory below has a "/" in it."""
        self._store = store
        self._found = found

    def entries(self) -> Iterator[Entry]:
        """See `Directory.entries`."""
        below = {name.partition("/")[0] for name in self._found if "/" in name}
        for name in self._found.keys() | below:
            if "/" not in name:
                yield Entry(name, (Kind.stray, "no file") if name in below else None)

    @contextmanager
    def opened(self, name: str, algorithms: Sequence[str]) -> Iterator[Source]:
        """See `Directory.opened`; nothing is asked for before it is read."""
        found = self._found[name]
        state = state_of(found.size, found.modified_at.timestamp())
        part = Part(found.size, partial(self._store.range, found.path))
        with joined([part]) as file:
            yield Source(state, file.read, algorithms)
