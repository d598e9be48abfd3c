"""The other processes of a run on this machine, as its first one sees them.

Each is a program of its own, started anew, since a copy of a process with threads and an event loop
cannot be relied on. It inherits the archive's locks, so that no other run begins before its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from bulkfetch.archive import files
from bulkfetch.logs import Event, about
from bulkfetch.pipeline.crew import ENDS_WITHIN_S, Member, Ties
from bulkfetch.pipeline.wire import HelperStart, SocketChannel, Start
from bulkfetch.retry import Budget
from bulkfetch.settings import ENV_PREFIX, Settings
from bulkfetch.transport import Transport

log = logging.getLogger(__name__)


class Processes:
    """The engine of one machine: so many processes, each with its part of what bounds the run."""

    first_takes_part = True
    lives = 1

    def __init__(self, settings: Settings, processes: int) -> None:
        self._settings = settings
        self.processes = processes
        self.share = share_of(settings, 1, processes)
        self.retries = Budget()
        self._shared = -1
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        """Make what the processes share, where there are several.

        Raises:
            DestinationError: the temporary directory cannot be written.
        """
        if self.processes > 1:
            self._shared = self._stack.enter_context(_shared_file(self.processes))
            self.retries = Budget(self._shared, 1, self.processes)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stack.close()

    def crew(self, start: Start, transport: Transport, ties: Ties) -> Sequence[Member]:  # noqa: ARG002  its share is its own
        """See `Engine.crew`."""
        return [
            Helper(
                HelperStart(
                    **{
                        **{name: getattr(start, name) for name in Start.__dataclass_fields__},
                        "settings": share_of(start.settings, number, self.processes),
                        "number": number,
                    },
                    processes=self.processes,
                    budget=self._shared,
                ),
                ties,
            )
            for number in range(2, self.processes + 1)
        ]


class Helper(Member):
    """Another process of this machine."""

    def __init__(self, start: HelperStart, ties: Ties) -> None:
        super().__init__(start, ties)
        self._started_by = start
        self._process: Process | None = None

    async def __call__(self) -> None:
        """See `Member.__call__`."""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self._process = process = await _started(theirs, self._started_by)
                except BaseException:
                    ours.close()
                    raise
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning(
                "no further process could be started: %s",
                reason,
                extra=about(Event.process_not_started, error=str(reason)),
            )
            return
        channel = await SocketChannel.open(ours)
        await self._hear_out(channel, ended=self._ended(channel, process))

    async def _ended(self, channel: SocketChannel, process: Process) -> str:
        await channel.close()
        ending = asyncio.ensure_future(process.wait())
        if not await _ends(ending):
            self._kill()
            await _ends(ending)
        status = ending.result() if ending.done() else 0
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                # `Process.kill` of Python before 3.13 may take the exit status from whoever waits
                # for it (https://github.com/python/cpython/issues/87744).
                os.kill(self._process.pid, signal.SIGKILL)


def share_of(settings: Settings, number: int, processes: int) -> Settings:
    """Return what one process of a run is bound by; the shares add up to the whole."""

    def part(whole: int) -> int:
        return whole // processes + (number <= whole % processes)

    return settings.model_copy(
        update={
            "query_concurrency": part(settings.query_concurrency),
            "download_concurrency": part(settings.download_concurrency),
            "rate_limit": settings.rate_limit and settings.rate_limit / processes,
        }
    )


async def _ends(ending: asyncio.Future[int]) -> bool:
    """Wait some seconds for the end of a process, however often cancelled; tell whether it came."""
    waiting = asyncio.ensure_future(asyncio.wait([ending], timeout=ENDS_WITHIN_S))
    with suppress(asyncio.CancelledError):
        await files.to_its_end(waiting)
    return ending.done()


async def _started(end: socket.socket, start: HelperStart) -> Process:
    # This very package and the same others, whatever the current directory is; and no secrets.
    environment = {
        name: text for name, text in os.environ.items() if not name.upper().startswith(ENV_PREFIX)
    }
    home = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        [home, *(path or str(Path.cwd()) for path in sys.path)]
    )
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "bulkfetch.pipeline.helper",
        str(end.fileno()),
        stdin=DEVNULL,
        stdout=DEVNULL,
        pass_fds=(end.fileno(), start.budget, *start.writer.locks),
        # Ctrl-C at a terminal is for the first process alone.
        start_new_session=True,
        env=environment,
    )


@contextmanager
def _shared_file(processes: int) -> Iterator[int]:
    """Yield a descriptor of what the processes of a run share."""
    with files.named("the temporary directory"), tempfile.TemporaryFile(buffering=0) as file:
        # Written, and not only made that long: a full disk is noticed here.
        file.write(bytes(Budget.size_bytes(processes)))
        yield file.fileno()
