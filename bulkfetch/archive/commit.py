"""Staged images on their way to their names, many at once.

A disk that is asked to make one file durable makes those written just before it durable too, and
a hop to a thread costs more than writing a small file. So whatever is ready while the thread is at
work is taken together, in the order that `bulkfetch.archive.base` promises; and where the disk is
not waited for, there is no thread.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from bulkfetch.archive import files
from bulkfetch.errors import BulkfetchError

# More would keep those that are done waiting for those that are not.
_TOGETHER = 64


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
    """An image, if there is one, and its sidecar, in one directory; `error` says why they are not.

    `refuse` is called with the directory's descriptor first, and may raise.
    """

    directory: str
    image: NewFile | None
    sidecar: NewFile
    refuse: Callable[[int], None]
    error: Exception | None = None


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
        self._is_at_work = False

    async def do(self, job: Job) -> None:
        """Do a job; it is waited for even when cancelled, since it cannot be called off.

        Raises:
            DestinationError: it could not be done.
            TakenError, PathRefusedError: as for `Archive.publish`.
        """
        try:
            if self._durable or self._take_turns:
                done = asyncio.get_running_loop().create_future()
                self._waiting.append((job, done))
                self._start()
                await files.to_its_end(done)
            else:
                # It waits for nothing, and so takes less time than the way to another thread.
                self._commit([job])
                if job.error is not None:
                    raise job.error
        except OSError as error:
            raise files.destination_error(error) from error

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _start(self) -> None:
        if self._is_at_work or not self._waiting:
            return
        self._is_at_work = True
        batch = [self._waiting.popleft() for _ in range(min(_TOGETHER, len(self._waiting)))]
        jobs = [job for job, _ in batch]

        def finish(work: asyncio.Future[None]) -> None:
            self._is_at_work = False
            self._start()
            unexpected = work.exception()
            for job, done in batch:
                error = unexpected or job.error
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._thread, self._commit, jobs).add_done_callback(finish)

    def _commit(self, jobs: Sequence[Job]) -> None:
        with ExitStack() as stack:
            self._take_room(sum(len(job.image.data or b"") for job in jobs if job.image))
            directories: dict[str, int] = {}
            # In one order everywhere, so that two processes never wait for each other.
            for path in sorted({job.directory for job in jobs}):
                try:
                    directory = self._open_directory(path)
                    stack.callback(os.close, directory)
                    if self._take_turns:
                        stack.enter_context(files.alone(directory))
                    directories[path] = directory
                except (OSError, BulkfetchError) as error:
                    _fail([job for job in jobs if job.directory == path], error)
            for job in jobs:
                if job.error is None:
                    try:
                        job.refuse(directories[job.directory])
                    except (OSError, BulkfetchError) as error:
                        job.error = error
            self._put([(job, job.image) for job in jobs if job.image], directories)
            self._put([(job, job.sidecar) for job in jobs], directories)

    def _put(self, wanted: Sequence[tuple[Job, NewFile]], directories: dict[str, int]) -> None:
        """Give files their names, as durably as is wanted; those of failed jobs are left out."""

        def each(step: Callable[[NewFile, int], None]) -> None:
            for job, file in wanted:
                if job.error is None:
                    directory = directories[job.directory]
                    try:
                        step(file, directory)
                    except OSError as error:
                        job.error = error
                        with suppress(OSError):
                            os.unlink(file.part, dir_fd=directory)

        each(self._write)
        if self._durable:
            each(_sync)
        each(lambda file, directory: files.rename(directory, file.part, file.name))
        if self._durable:
            for path in {job.directory for job, _ in wanted if job.error is None}:
                try:
                    os.fsync(directories[path])
                except OSError as error:
                    _fail([job for job, _ in wanted if job.directory == path], error)

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


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.error = error
