"""An archive to read, wherever it lies: names in directories, and the files there.

Paths are relative to the archive and divided by "/".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from bulkfetch.archive import files
from bulkfetch.archive.lock import at_work, hold_still
from bulkfetch.archive.segments import Part, joined, segments_of, whole_name
from bulkfetch.errors import PathRefusedError
from bulkfetch.models import Shard
from bulkfetch.paths import PRIVATE

NO_FILE = (errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)
"""What `Tree.open` fails with where a directory, a link, a pipe or a socket lies."""


class Tree(Protocol):
    """What lies in an archive; every method raises `OSError` where it cannot be read."""

    @property
    def name(self) -> str:
        """What people call the archive."""

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted.

        Raises:
            FileNotFoundError: there is none.
        """

    def folders(self, depth: int) -> Generator[tuple[str, Collection[str]]]:
        """Yield the directories of images, so many levels down, each with the names of its files.

        They come in no order that holds everywhere, and are not all remembered.
        """

    def open(self, path: str) -> BinaryIO:
        """Open a file to be read; a link or a pipe in its place is an error.

        Raises:
            FileNotFoundError: there is none.
        """

    def flush(self, path: str) -> None:
        """See that what can be read of a file is there after a power cut, too."""

    def still(self) -> AbstractContextManager[None]:
        """Let no run begin until the context ends, as far as that can be done by reading.

        Raises:
            DestinationError: a run is at work.
        """

    def at_work(self) -> Mapping[str, Shard | None]:
        """Return the runs at work, as far as can be seen without locks, each with its shard.

        They are told by their IDs.
        """


class LocalTree:
    """A directory of this machine; no symbolic link below it is followed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """See `Tree.name`."""
        return str(self.root)

    def names(self, directory: str) -> list[str]:
        """See `Tree.names`."""
        descriptor = self._directory(directory)
        try:
            return sorted({*map(whole_name, os.listdir(descriptor))})  # noqa: PTH208  of a descriptor
        finally:
            os.close(descriptor)

    def folders(self, depth: int) -> Generator[tuple[str, Collection[str]]]:
        """See `Tree.folders`."""
        for path in self._below("", depth):
            yield path, self.names(path)

    def open(self, path: str) -> BinaryIO:
        """See `Tree.open`."""
        above, _, name = path.rpartition("/")
        directory = self._directory(above)
        try:
            descriptor = files.open_regular(name, directory)
        except FileNotFoundError:
            segments = segments_of(name, os.listdir(directory))  # noqa: PTH208  the same
            if not segments:
                raise
            return joined([self._part(f"{above}/{segment}") for segment in segments])
        finally:
            os.close(directory)
        return os.fdopen(descriptor, "rb")

    def flush(self, path: str) -> None:
        """See `Tree.flush`."""
        with self.open(path) as file:
            os.fsync(file.fileno())

    def still(self) -> AbstractContextManager[None]:
        """See `Tree.still`."""
        return hold_still(self.root / PRIVATE)

    def at_work(self) -> Mapping[str, Shard | None]:
        """See `Tree.at_work`."""
        return at_work(self.root / PRIVATE)

    def _below(self, above: str, depth: int) -> Iterator[str]:
        directory = self._directory(above.rstrip("/"))
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if above + entry.name == PRIVATE or not entry.is_dir(follow_symlinks=False):
                        continue
                    if depth == 1:
                        yield above + entry.name
                    else:
                        yield from self._below(f"{above}{entry.name}/", depth - 1)
        finally:
            os.close(directory)

    def _part(self, path: str) -> Part:
        def read(offset: int, length: int) -> bytes:
            with self.open(path) as file:
                file.seek(offset)
                return file.read(length)

        with self.open(path) as file:
            return Part(os.fstat(file.fileno()).st_size, read)

    def _directory(self, path: str) -> int:
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        if not path:
            return root
        try:
            return files.open_directory(path, root)
        except PathRefusedError as error:
            raise OSError(errno.ELOOP, str(error)) from None
        finally:
            os.close(root)


def read(tree: Tree, path: str, at_most: int) -> bytes:
    """Return a file's bytes, of one longer than `at_most` only its beginning.

    Raises:
        OSError: as `Tree.open` does.
    """
    with tree.open(path) as file:
        return file.read(at_most)


def is_there(tree: Tree, path: str) -> bool:
    """Tell whether anything lies at a path, as far as that can be read."""
    directory, _, name = path.rpartition("/")
    # A journal may name anything, and a path with a NUL is a value that cannot be.
    with suppress(OSError, ValueError):
        return name in tree.names(directory)
    return False
