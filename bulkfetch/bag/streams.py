"""A bag that is one file, or goes down a pipe: written from its first byte to its last.

The payload comes first, since a bag's manifests tell what was read; so one that is cut off is none.
"""

from __future__ import annotations

import os
import pickle
import tarfile
import tempfile
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import PurePosixPath
from typing import IO, BinaryIO

from bulkfetch.archive import Tree, files
from bulkfetch.bag.target import outside
from bulkfetch.errors import ConfigurationError, DestinationError
from bulkfetch.verification import Source

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
ZIP_ENDINGS = (".zip",)
STANDARD_OUTPUT = "-"
# Images get no smaller, and sidecars do at once.
_QUICKLY = 1
# To zlib: with the header and the trailer of a .gz file.
_GZIP = 31


@contextmanager
def as_tar(to: str, archive: Tree) -> Iterator[StreamTarget]:
    """Make a bag in a new tar file, compressed if its ending says so; `-` is standard output.

    Raises:
        ConfigurationError: there is such a file, it has another ending, or is in the archive.
        DestinationError: it cannot be written, or another process writes it.
    """
    if to == STANDARD_OUTPUT:
        if os.isatty(1):
            raise ConfigurationError("a bag cannot be shown: send it to a pipe, or name a file")
        with _closing(os.fdopen(1, "wb", closefd=False)) as file:
            yield _TarTarget("standard output", archive.name.rpartition("/")[2], file, file.flush)
        return
    with _new_file(to, archive, "--tar", TAR_ENDINGS) as (file, top, publish):
        is_compressed = not to.endswith(".tar")
        yield _TarTarget(to, top, file, publish, is_compressed=is_compressed)


@contextmanager
def as_zip(to: str, archive: Tree) -> Iterator[StreamTarget]:
    """Make a bag in a new ZIP file, without compression: images are compressed already.

    Raises:
        ConfigurationError: there is such a file, it has another ending, or is in the archive.
        DestinationError: it cannot be written, or another process writes it.
    """
    with ExitStack() as stack:
        file, top, publish = stack.enter_context(_new_file(to, archive, "--zip", ZIP_ENDINGS))
        with files.named("the temporary directory"):
            entries = _Entries(stack.enter_context(tempfile.TemporaryFile()))
        target = _ZipTarget(to, top, file, publish, entries)
        stack.callback(target.abandon)
        yield target


class StreamTarget(ABC):
    """A bag in a stream, below one directory of the stream's name (RFC 8493, section 4)."""

    def __init__(self, where: str, top: str, publish: Callable[[], None]) -> None:
        self._where = where
        self._top = PurePosixPath(top)
        self._publish = publish
        self._open: set[PurePosixPath] = set()

    @property
    def where(self) -> str:
        """See `Target`."""
        return self._where

    def take(self, directory: int, path: str, source: Source) -> None:  # noqa: ARG002  see `Take`
        """See `Target`."""
        self.put(f"data/{path}", source)

    def put(self, path: str, source: Source) -> None:
        """See `Target`."""
        with files.named(self._where):
            self._enter((self._top / path).parent)
            self._add(f"{self._top}/{path}", source)

    def commit(self) -> None:
        """See `Target`."""
        with files.named(self._where):
            # Of an empty archive, too.
            self._enter(self._top / "data")
            self._finish()
            self._publish()

    def _enter(self, directory: PurePosixPath) -> None:
        """Add the directories that what is next lies in, so that they are private, too."""
        inside = [path for path in (directory, *directory.parents) if path.name]
        for path in reversed(inside):
            if path not in self._open:
                self._add_directory(str(path))
        self._open = set(inside)

    @abstractmethod
    def _add_directory(self, path: str) -> None: ...

    @abstractmethod
    def _add(self, path: str, source: Source) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...


class _TarTarget(StreamTarget):
    """Written member by member: `TarFile` keeps each in memory, and asks a pipe where it is."""

    def __init__(
        self,
        where: str,
        top: str,
        file: BinaryIO,
        publish: Callable[[], None],
        *,
        is_compressed: bool = False,
    ) -> None:
        super().__init__(where, top, publish)
        self._file = file
        self._gzip = zlib.compressobj(_QUICKLY, zlib.DEFLATED, _GZIP) if is_compressed else None

    def _add_directory(self, path: str) -> None:
        member = tarfile.TarInfo(path)
        member.type, member.mode = tarfile.DIRTYPE, files.DIRECTORY_MODE
        member.mtime = int(time.time())
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8"))

    def _add(self, path: str, source: Source) -> None:
        member = tarfile.TarInfo(path)
        member.mode, member.size = files.FILE_MODE, source.state.st_size
        # A fraction would take a header of its own.
        member.mtime = int(source.state.st_mtime)
        self._write(member.tobuf(tarfile.PAX_FORMAT, "utf-8"))
        while data := source.read():
            self._write(data)
        self._write(bytes(-member.size % tarfile.BLOCKSIZE))

    def _finish(self) -> None:
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        if self._gzip:
            self._file.write(self._gzip.flush())

    def _write(self, data: bytes) -> None:
        self._file.write(self._gzip.compress(data) if self._gzip else data)


class _ZipTarget(StreamTarget):
    def __init__(
        self,
        where: str,
        top: str,
        file: BinaryIO,
        publish: Callable[[], None],
        entries: _Entries,
    ) -> None:
        super().__init__(where, top, publish)
        self._zip = zipfile.ZipFile(file, "w")
        self._zip.filelist = entries

    def abandon(self) -> None:
        """Write no more, whatever is left to be written."""
        self._zip.fp = None

    def _add_directory(self, path: str) -> None:
        member = zipfile.ZipInfo(f"{path}/", time.gmtime()[:6])
        member.external_attr = (0o40000 | files.DIRECTORY_MODE) << 16 | 0x10
        self._write(member, None)

    def _add(self, path: str, source: Source) -> None:
        # It knows no years before, and none after.
        earliest, latest = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
        when = min(max(time.gmtime(source.state.st_mtime)[:6], earliest), latest)
        member = zipfile.ZipInfo(path, when)
        member.external_attr = (0o100000 | files.FILE_MODE) << 16
        member.file_size = source.state.st_size
        self._write(member, source)

    def _write(self, member: zipfile.ZipInfo, source: Source | None) -> None:
        member.create_system = 3  # whose modes these are
        with self._zip.open(member, "w") as file:
            while source and (data := source.read()):
                file.write(data)
        # Kept to be looked up, which nobody does: memory would grow with the files.
        self._zip.NameToInfo.clear()

    def _finish(self) -> None:
        self._zip.close()


class _Entries(list[zipfile.ZipInfo]):
    """What is to stand in a ZIP file's directory, at its end; kept on disk till then."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._count = 0

    def append(self, entry: zipfile.ZipInfo) -> None:
        pickle.dump(entry, self._file)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        self._file.seek(0)
        for _ in range(self._count):
            yield pickle.load(self._file)  # noqa: S301  our own, in a file without a name


@contextmanager
def _new_file(
    to: str, archive: Tree, option: str, endings: tuple[str, ...]
) -> Iterator[tuple[BinaryIO, str, Callable[[], None]]]:
    """Open a file beside its name; yield it, that name without its ending, and what gives it that.

    What a killed command left there is written over.
    """
    final = outside(to, archive, option)
    ending = next((ending for ending in endings if final.name.endswith(ending)), "")
    top = final.name.removesuffix(ending)
    if not ending or not top:
        raise ConfigurationError(f"{to} does not end in {' or '.join(endings)}: correct {option}")
    part = f".{final.name}.part"

    def refuse_existing() -> None:
        if files.exists(final.name, directory):
            raise ConfigurationError(f"{to} is there already: name another with {option}")

    def publish() -> None:
        file.flush()
        os.fsync(descriptor)
        refuse_existing()
        files.rename(directory, part, final.name)
        os.fsync(directory)

    with ExitStack() as stack:
        with files.named(to):
            directory = stack.enter_context(files.descriptor(final.parent))
            refuse_existing()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(part, flags, files.FILE_MODE, dir_fd=directory)
            file = stack.enter_context(_closing(os.fdopen(descriptor, "wb")))
            if not files.lock(descriptor):
                raise DestinationError(f"another process is writing {to}: wait for it")
            stack.callback(_remove, part, directory)
            os.ftruncate(descriptor, 0)
        yield file, top, publish


@contextmanager
def _closing(file: BinaryIO) -> Iterator[BinaryIO]:
    """Close a file at the end; what was given up cannot be written, and need not be."""
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _remove(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
