"""Staged images on their way to their names, many at once.

A disk that is asked to make one file durable makes those written just before it durable too, and
a hop to a thread costs more than writing a small file. So whatever is ready while the thread is at
work is taken together, in the order that `bulkfetch.archive.base` promises; and where the disk is
not waited for, there is no thread.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from bulkfetch.archive import files
from bulkfetch.errors import BulkfetchError, DestinationError, TakenError

# More would keep those that are done waiting for those that are not.
_TOGETHER = 64
# Others that are at work in a directory are waited for so long: a slow disk, many of them.
WAIT_S = 60.0
# Flushes that a disk is asked for at once: it may take them together.
_SYNCS_AT_ONCE = 8


@dataclass(slots=True)
class NewFile:
    """A file to be: first called `part`, then `name`.

    `data` is what to write, or None where it lies under `part` already; then `descriptor` is of it.
    """

    part: str
    name: str
    data: bytes | None
    descriptor: int | None = None


@dataclass(slots=True)
class Job:
    """An image, if there is one, and its sidecar, in a directory.

    Attributes:
        error: why it could not be done.
        wait_until: how long others may be at work in the directory, by `time.monotonic`.
    """

    directory: str
    image: NewFile | None
    sidecar: NewFile
    error: Exception | None = None
    wait_until: float = 0.0


class Committer:
    """Does jobs in a thread of its own, one batch at a time.

    Args:
        open_directory: returns a descriptor of a directory to write in, which is closed here.
        take_room: raises if so many bytes cannot be written.
        durable: whether to wait for the disk.
        take_turns: whether other processes may be writing in the same directories, and take turns.
    """

    def __init__(
        self,
        open_directory: Callable[[str], int],
        take_room: Callable[[int], None],
        *,
        durable: bool,
        take_turns: bool,
    ) -> None:
        self._open_directory = open_directory
        self._take_room = take_room
        self._durable = durable
        self._take_turns = take_turns
        self._waiting: deque[tuple[Job, asyncio.Future[None]]] = deque()
        self._thread = ThreadPoolExecutor(1, "commit")
        self._syncers = ThreadPoolExecutor(_SYNCS_AT_ONCE, "sync")
        self._is_at_work = False

    async def do(self, job: Job) -> None:
        """Do a job; it is waited for even when cancelled, since it cannot be called off.

        Raises:
            DestinationError: it could not be done.
            TakenError: its sidecar is there already; nothing is overwritten.
            PathRefusedError: its directory is none.
        """
        try:
            if not self._durable:
                # It waits for nothing, and so takes less time than the way to another thread.
                self._commit([job])
                if job.error is None:
                    return
                if not isinstance(job.error, files.HeldError):
                    raise job.error
                job.error = None
            job.wait_until = time.monotonic() + WAIT_S
            done = asyncio.get_running_loop().create_future()
            self._waiting.append((job, done))
            self._start()
            try:
                await asyncio.shield(done)
            except asyncio.CancelledError:
                job.wait_until = 0.0
                with suppress(Exception):
                    await files.to_its_end(done)
                raise
        except OSError as error:
            raise files.destination_error(error) from error

    def open(self) -> None:
        """Start the threads, so that none is missing later.

        Raises:
            DestinationError: there is none to be had.
        """
        meet = threading.Barrier(_SYNCS_AT_ONCE)
        try:
            if self._durable or self._take_turns:
                self._thread.submit(int).result()
            if self._durable:
                list(self._syncers.map(lambda _: meet.wait(), range(_SYNCS_AT_ONCE)))
        except RuntimeError as error:
            meet.abort()
            raise _no_thread(error) from None

    def close(self) -> None:
        """End the threads."""
        self._thread.shutdown()
        self._syncers.shutdown()

    def _start(self) -> None:
        if self._is_at_work or not self._waiting:
            return
        batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
        loop = asyncio.get_running_loop()
        try:
            jobs = [job for job, _ in batch]
            work = loop.run_in_executor(self._thread, self._commit_in_thread, jobs)
        except RuntimeError as error:
            _answer([*batch, *self._waiting], _no_thread(error))
            self._waiting.clear()
            return
        self._is_at_work = True

        def finish(work: asyncio.Future[None]) -> None:
            self._is_at_work = False
            unexpected, now, ended = work.exception(), time.monotonic(), []
            for job, done in batch:
                is_busy = unexpected is None and isinstance(job.error, files.HeldError)
                if is_busy and now < job.wait_until:
                    job.error = None
                    self._waiting.append((job, done))
                else:
                    ended.append((job, done))
            _answer(ended, unexpected)
            self._start()

        work.add_done_callback(finish)

    def _commit_in_thread(self, jobs: Sequence[Job]) -> None:
        self._commit(jobs)
        if all(isinstance(job.error, files.HeldError) for job in jobs):
            time.sleep(files.TURN_LOOK_S)

    def _commit(self, jobs: Sequence[Job]) -> None:
        """Do jobs, but for those in directories where another process is at work just now."""
        new = (file for job in jobs for file in (job.image, job.sidecar) if file)
        self._take_room(sum(len(file.data or b"") for file in new))
        by_directory: dict[str, list[Job]] = {}
        for job in jobs:
            by_directory.setdefault(job.directory, []).append(job)
        with ExitStack() as stack:
            directories: dict[str, int] = {}
            for path, inside in by_directory.items():
                try:
                    directory = self._open_directory(path)
                    # Which lets go of the lock, too.
                    stack.callback(os.close, directory)
                    if self._take_turns and not files.lock(directory):
                        raise files.HeldError(
                            f"another process is at work in {path} for {WAIT_S:.0f} s: "
                            "is it stopped?"
                        )
                    directories[path] = directory
                except (OSError, BulkfetchError) as error:
                    _fail(inside, error)
            for job in jobs:
                if job.error is None and files.exists(job.sidecar.name, directories[job.directory]):
                    job.error = TakenError("another row or shard archived the image meanwhile")
            self._put([(job, job.image) for job in jobs if job.image], directories)
            self._put([(job, job.sidecar) for job in jobs], directories)

    def _put(self, wanted: Sequence[tuple[Job, NewFile]], directories: dict[str, int]) -> None:
        """Give files their names, as durably as is wanted; those of failed jobs are left out."""

        def one(step: Callable[[NewFile, int], None], job: Job, file: NewFile) -> None:
            if job.error is None:
                directory = directories[job.directory]
                try:
                    step(file, directory)
                except OSError as error:
                    job.error = error
                    with suppress(OSError):
                        os.unlink(file.part, dir_fd=directory)

        def flush(path: str) -> None:
            try:
                os.fsync(directories[path])
            except OSError as error:
                _fail([job for job, _ in wanted if job.directory == path], error)

        for job, file in wanted:
            one(self._write, job, file)
        if self._durable:
            list(self._syncers.map(lambda pair: one(_sync, *pair), wanted))
        for job, file in wanted:
            one(_rename, job, file)
        if self._durable:
            touched = {job.directory for job, _ in wanted if job.error is None}
            list(self._syncers.map(flush, touched))

    def _write(self, file: NewFile, directory: int) -> None:
        if file.data is None:
            return
        descriptor = files.create(file.part, directory)
        try:
            files.write(descriptor, file.data)
            if self._durable:
                file.descriptor = descriptor
        finally:
            if file.descriptor is None:
                os.close(descriptor)


def _sync(file: NewFile, _: int) -> None:
    if file.descriptor is None:
        return
    try:
        os.fsync(file.descriptor)
    finally:
        if file.data is not None:
            os.close(file.descriptor)


def _rename(file: NewFile, directory: int) -> None:
    files.rename(directory, file.part, file.name)


def _no_thread(error: RuntimeError) -> DestinationError:
    return DestinationError(f"{error}: allow this user more of them (ulimit -u)")


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.error = job.error or error


def _answer(
    batch: Sequence[tuple[Job, asyncio.Future[None]]], unexpected: BaseException | None
) -> None:
    for job, done in batch:
        error = unexpected or job.error
        if error is None:
            done.set_result(None)
        else:
            # Each its own, since each is raised in a task of its own.
            done.set_exception(copy.copy(error))
