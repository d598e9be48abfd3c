"""A bag that is a directory: linked to the archive's files, or a copy of them."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bulkfetch.archive import Tree, files
from bulkfetch.bag.target import outside
from bulkfetch.errors import ConfigurationError, DestinationError
from bulkfetch.verification import FoundError, Kind, Source

# Other processes of one that was killed end at once, but for what the disk is at.
_LAST_WRITE_S = 10.0
# Another file system, one without hard links, another owner's file, or as many links as can be.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

T = TypeVar("T")


@contextmanager
def in_directory(to: str, archive: Tree, *, copy: bool) -> Iterator[DirectoryTarget]:
    """Make a bag in a directory that is not there yet, or empty.

    It grows beside it under another name; what a killed command left under that is removed.

    Raises:
        ConfigurationError: there is something, or it is in the archive.
        DestinationError: it cannot be written, or another process makes this bag.
    """
    final = outside(to, archive, "--to")
    part = final.with_name(f".{final.name}.bag-part")
    with ExitStack() as stack:
        with files.named(to):
            if final.is_mount():
                raise ConfigurationError(f"{to} is a mount point: name a directory in it with --to")
            if final.exists() and not (final.is_dir() and not any(final.iterdir())):
                raise ConfigurationError(f"{to} is there already: name another with --to")
            _clear_away(part)
            part.mkdir(mode=files.DIRECTORY_MODE)
            files.lock(stack.enter_context(files.descriptor(part)))
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            (part / "data").mkdir(mode=files.DIRECTORY_MODE)
        yield DirectoryTarget(to, part, final, copy)


def _clear_away(part: Path) -> None:
    if part.is_symlink():
        raise DestinationError(f"{part} is a symbolic link, which is not followed: remove it")
    if not part.exists():
        return
    with files.descriptor(part) as left:
        if not files.lock(left, time.monotonic() + _LAST_WRITE_S):
            raise DestinationError(f"another process is making this bag, in {part}: wait for it")
        # Its files may be the archive's own, of which this takes a name away and nothing else.
        shutil.rmtree(part)


@dataclass(frozen=True, slots=True)
class DirectoryTarget:
    """A bag in a directory; other processes may `take` for it, too."""

    where: str
    part: Path
    final: Path
    copy: bool

    def take(self, directory: int, path: str, source: Source) -> None:
        """See `Target`."""
        if self.copy:
            self._write(f"data/{path}", source, durable=False)
        else:
            self._link(directory, path, source)
            source.drain()

    def put(self, path: str, source: Source) -> None:
        """See `Target`."""
        self._write(path, source, durable=True)

    def commit(self) -> None:
        """See `Target`."""
        with files.named(self.where):
            # All at the end, when the disk has most of it: one by one they would wait for it.
            _flush_tree(str(self.part), with_files=self.copy)
            self.part.rename(self.final)
            _flush(str(self.final.parent))

    def _write(self, path: str, source: Source, *, durable: bool) -> None:
        # Never a file that is there: that may be the archive's own.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        there = self.part / path
        with files.named(self.where):
            descriptor = _below_its_directories(
                there, lambda: os.open(there, flags, files.FILE_MODE)
            )
            try:
                while data := source.read():
                    files.write(descriptor, data)
                os.utime(descriptor, ns=(source.state.st_atime_ns, source.state.st_mtime_ns))
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _link(self, directory: int, path: str, source: Source) -> None:
        if directory < 0:
            raise ConfigurationError("what is in an object store cannot be linked to: give --copy")
        name, there = path.rpartition("/")[2], self.part / "data" / path
        try:
            _below_its_directories(
                there,
                lambda: os.link(name, there, src_dir_fd=directory, follow_symlinks=False),
            )
        except FileNotFoundError:
            raise FoundError(Kind.missing, "it was removed while it was read") from None
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise files.destination_error(error, self.where) from error
            raise ConfigurationError(
                f"{path} cannot be linked to from {self.where} ({error.strerror}): give --copy"
            ) from None
        if not os.path.samestat(there.lstat(), source.state):
            raise FoundError(Kind.changed, "another file took its name while it was read")


def _below_its_directories(there: Path, make: Callable[[], T]) -> T:
    try:
        return make()
    except FileNotFoundError:
        files.make_directory(there.parent)
        return make()


def _flush_tree(path: str, *, with_files: bool) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _flush_tree(entry.path, with_files=with_files)
            elif with_files:
                _flush(entry.path)
    _flush(path)


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
