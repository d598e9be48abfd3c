"""Files opened relative to a directory's descriptor, and never through a symbolic link.

So neither a name nor a link that somebody planted leads out of the archive.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import TypeVar

from bulkfetch.errors import DestinationError, PathRefusedError

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
# Room for a journal's end, a summary and the sidecars of what is in flight; on a small disk it is a
# twentieth.
RESERVE_BYTES = 16 * 2**20
# A neighbour writes a directory's files in far less.
TURN_S = 4.0
TURN_LOOK_S = 0.005

_READ_BYTES = 2**16

T = TypeVar("T")


class HeldError(DestinationError):
    """Another process does not let go of a directory."""


@contextmanager
def named(what: str = "the destination") -> Iterator[None]:
    """Turn the operating system's word into a `DestinationError`."""
    try:
        yield
    except OSError as error:
        raise destination_error(error, what) from error


def destination_error(error: OSError, what: str = "the destination") -> DestinationError:
    """Return our name for the operating system's word."""
    return DestinationError(f"{what} cannot be used: {error.strerror or type(error).__name__}")


def make_directory(path: Path) -> None:
    """Make a directory and whatever of those above it is missing, each private to its owner."""
    for missing in reversed([path, *path.parents]):
        missing.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def nearest(path: Path) -> Path:
    """Return what is there of a path: itself, or whatever is nearest above it."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_parent(path: Path, option: str) -> None:
    """See that the directory is there in which a new file or directory is to be.

    Raises:
        DestinationError: it is not; `option` is what names the path.
    """
    parent = path.parent
    with named(str(path)):
        if parent.is_dir():
            return
        what = (
            "is no directory:"
            if parent.exists()
            else f"is not there: make it (mkdir -p {shlex.quote(str(parent))}), or"
        )
    raise DestinationError(f"{parent} {what} name another with {option}")


@contextmanager
def descriptor(path: Path) -> Iterator[int]:
    """Open a directory that is trusted: the archive's root, or one below `.bulkfetch`."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)


@contextmanager
def subdirectory(name: str, parent: int) -> Iterator[int]:
    """Open a directory in another; a symbolic link is an error."""
    opened = open_directory(name, parent)
    try:
        yield opened
    finally:
        os.close(opened)


def open_directory(path: str, parent: int, *, make: bool = False, durable: bool = False) -> int:
    """Return a descriptor of a directory below another; the caller closes it.

    With `make`, those that are missing are made, each private to its owner.

    Raises:
        PathRefusedError: on the way lies a symbolic link, or what is no directory.
    """
    name, _, below = path.partition("/")
    opened = _open_directory(name, parent, make=make, durable=durable)
    if not below:
        return opened
    try:
        return open_directory(below, opened, make=make, durable=durable)
    finally:
        os.close(opened)


def _open_directory(name: str, parent: int, *, make: bool, durable: bool) -> int:
    try:
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        with suppress(FileExistsError):
            os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)
            if durable:
                os.fsync(parent)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise PathRefusedError(
            f"{name} in the archive is a link or a file where a directory belongs: move it away"
        ) from None


def exists(name: str, directory: int) -> bool:
    """Tell whether anything has this name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_to_read(name: str | Path, directory: int | None = None) -> int:
    """Return a descriptor of a file to read; a pipe that lies there is empty, not waited for."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)


def open_regular(name: str | Path, directory: int | None = None) -> int:
    """Return a descriptor of a file to read.

    Raises:
        OSError: something else lies there, such as a device, which may have no end.
    """
    descriptor = open_to_read(name, directory)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "it is no file")


@contextmanager
def opened(name: str | Path, directory: int | None = None) -> Iterator[int]:
    """Open a file to be read, as `open_to_read` does."""
    descriptor = open_to_read(name, directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(name: str | Path, directory: int | None = None, at_most: float = math.inf) -> bytes:
    """Return a file's bytes, of a file longer than `at_most` only its beginning."""
    with opened(name, directory) as descriptor:
        return read_to_end(descriptor, at_most)


def read_to_end(descriptor: int, at_most: float = math.inf) -> bytes:
    """Return the bytes of an open file, of one longer than `at_most` only its beginning."""
    data = part = os.read(descriptor, _READ_BYTES)
    # Less than was asked for is the end of a file.
    while len(part) == _READ_BYTES and len(data) < at_most:
        part = os.read(descriptor, _READ_BYTES)
        data += part
    return data


def create(name: str, directory: int, *, keep: bool = False) -> int:
    """Return a descriptor of a file to write and read, private to its owner.

    What is there is truncated, unless it is to be kept: then the place to read is its start, and
    all that is written goes to its end.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if keep else os.O_TRUNC)
    return os.open(name, flags, FILE_MODE, dir_fd=directory)


def write(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def write_whole(directory: int, part: str, name: str, data: bytes, *, durable: bool) -> None:
    """Write a file under the name `part`, and give it its own once it is whole.

    With `durable`, it has reached the disk under that name. After a failure, `part` is gone.
    """
    try:
        descriptor = create(part, directory)
        try:
            write(descriptor, data)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        rename(directory, part, name)
        if durable:
            os.fsync(directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=directory)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedRandom]:
    """Yield a file to write, which gets its name when the block ends: whole, and on the disk.

    Until then what has that name stays. It is private to its owner. After a failure nothing new is
    left; after a kill there may be `.<name>.part`, which the next call replaces.

    Raises:
        HeldError: another process is writing it.
    """
    part = f".{path.name}.part"
    with descriptor(path.parent) as directory, open(_hold(part, directory, path), "w+b") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            rename(directory, part, path.name)
            os.fsync(directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(part, dir_fd=directory)
            raise


def _hold(part: str, directory: int, path: Path) -> int:
    """Return a descriptor of an empty file that no other process writes as long as it is open."""
    opened = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE, dir_fd=directory)
    # Whoever had it may have given it its name meanwhile.
    if lock(opened) and _is_at(opened, part, directory):
        os.fchmod(opened, FILE_MODE)
        os.ftruncate(opened, 0)
        return opened
    os.close(opened)
    raise HeldError(f"{path} is being written by another process")


def _is_at(descriptor: int, name: str, directory: int) -> bool:
    with suppress(FileNotFoundError):
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        return os.path.samestat(os.fstat(descriptor), there)
    return False


class GrowingFile:
    """See `Growing`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """See `Growing.name`."""
        return str(self._path)

    def append(self, data: bytes, *, durable: bool) -> int:
        """See `Growing.append`."""
        if not data and not durable:
            return 0
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT if data else 0)
        try:
            descriptor = os.open(self._path, flags, FILE_MODE)
        except FileNotFoundError:
            if data:
                raise
            return 0
        try:
            written = os.write(descriptor, data)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return written

    def close(self, *, durable: bool) -> None:
        """See `Growing.close`."""
        if durable:
            self.append(b"", durable=True)


def rename(directory: int, old: str, new: str) -> None:
    """Rename a file within its directory."""
    os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


async def to_its_end(work: asyncio.Future[T]) -> T:
    """Await what a thread does, however often cancelled: it cannot be called off."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        work.exception()  # looked at, so that the loop does not report it
        raise


@contextmanager
def alone(directory: int) -> Iterator[None]:
    """Keep every other process out that asks for the same; the lock dies with its holder.

    Raises:
        HeldError: another process did not let go of it within `TURN_S`.
    """
    if not lock(directory, time.monotonic() + TURN_S):
        raise HeldError(
            f"another process holds a directory of the archive for {TURN_S:.0f} s: is it stopped?"
        )
    try:
        yield
    finally:
        unlock(directory)


def lock(descriptor: int, deadline: float = 0.0, *, shared: bool = False) -> bool:
    """Lock an open file or directory for the process and those that inherit the descriptor.

    `shared` keeps out only those that ask for it alone. Returns whether that could be done before
    `deadline`, of `time.monotonic`; tried once at least.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(TURN_LOOK_S)
        else:
            return True


def unlock(descriptor: int) -> None:
    """Let others lock it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


class Room:
    """The free space of a file system, looked at as often as what is written makes it needful."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._allowance = 0

    def take(self, size_bytes: int) -> None:
        """Note what is to be written.

        Raises:
            DestinationError: that would leave less than it takes to end a run in order.
        """
        self._allowance -= size_bytes
        if self._allowance < 0:
            self.look(size_bytes)

    def look(self, wanted_bytes: int = 0) -> None:
        """See how much is free.

        Raises:
            DestinationError: less than it takes to write so much and then end a run in order.
        """
        found = os.statvfs(self._path)
        size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        # Some file systems report no size at all: nothing can be said of those.
        reserve = min(RESERVE_BYTES, size // 20)
        if free - wanted_bytes < reserve:
            raise DestinationError(
                f"{self._path} is full: {free >> 20} MiB free; make room, and run the same command "
                "again"
            )
        # Others write there too, so not all of it is this run's until the next look.
        self._allowance = min(64 * 2**20, (free - wanted_bytes - reserve) // 4)
