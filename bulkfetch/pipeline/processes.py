"""The other processes of a run, as its first one sees them.

Each is a program of its own, started anew, since a copy of a process with threads and an event loop
cannot be relied on. It is given rows, lent tokens, and told when to stop; it reports what became of
the rows. It inherits the archive's locks, so that no other run begins before its end.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bulkfetch.api import Tokens
from bulkfetch.archive import files
from bulkfetch.errors import BulkfetchError
from bulkfetch.journal import Failure, Tally
from bulkfetch.models import ImageOutcome, ManifestRow
from bulkfetch.pipeline.patients import seats_of
from bulkfetch.pipeline.wire import (
    Borrow,
    Channel,
    Fatal,
    Lent,
    LogLine,
    Order,
    Report,
    Rows,
    Start,
)
from bulkfetch.retry import Budget
from bulkfetch.settings import ENV_PREFIX, Settings
from bulkfetch.snapshot import InFlight

# A helper is heard of twice a second; one that is not for so long is stopped, or stuck.
SILENT_AT_MOST_S = 60
# Ending takes a helper its last writes; one that takes longer is stuck, and killed.
_ENDS_WITHIN_S = 3.0

log = logging.getLogger(__name__)


class Helper:
    """A process that sees to patients of this run; `await helper()` is its whole life.

    `ended` is told how each patient failed, or None; `died`, when the process ended early, those
    that it was at, those that it had not begun, and how it ended; `fail` what ends the run;
    `changed` that something is new.

    Attributes:
        tally: its sums, as far as it told.
        in_flight: what it has under way.
        query_limit: how many queries it has in flight at most, now.
        outage: what it waits for, in words; None when all is well.
    """

    def __init__(
        self,
        start: Start,
        tokens: Tokens,
        *,
        ended: Callable[[ManifestRow, Failure | None], None],
        died: Callable[[Sequence[ManifestRow], Sequence[ManifestRow], str], None],
        fail: Callable[[BulkfetchError], None],
        changed: Callable[[], None],
    ) -> None:
        self._start = start
        self._tokens = tokens
        self._ended = ended
        self._died = died
        self._fail = fail
        self._changed = changed
        self.tally = Tally()
        self.in_flight = InFlight()
        self.query_limit = start.settings.query_concurrency
        self.outage: str | None = None
        self._seats = seats_of(start.settings)
        self._in_hand: dict[int, ManifestRow] = {}
        self._to_send: list[ManifestRow] = []
        self._orders: list[Order] = []
        self._has_begun = False
        self._is_ready = False
        self._is_done = False
        self._silent_s = 0
        self._channel: Channel | None = None
        self._process: Process | None = None

    @property
    def free(self) -> int:
        """How many more patients it could begin at once; less than 0 are those that wait there."""
        return self._seats - len(self._in_hand)

    @property
    def has_room(self) -> bool:
        """Whether it may be given a row: as many as it can begin with may wait, to be at hand."""
        return self._is_ready and not self._orders and self.free > -self._seats

    def begin(self, row: ManifestRow) -> None:
        """Give it a row."""
        self._in_hand[row.line] = row
        if not self._to_send:
            # Those that are given meanwhile go together.
            asyncio.get_running_loop().call_soon(self._send_rows)
        self._to_send.append(row)

    def order(self, order: Order) -> None:
        """Tell it that there are no more rows, to stop in order, or at once."""
        self._send_rows()
        self._orders.append(order)
        if not self._has_begun:
            # It has nothing, and there is nothing that it could be in time for.
            self._is_done = True
            self._kill()
        elif self._channel:
            self._channel.send(order)
        if order is not Order.finish:
            grace_s = self._start.grace_s if order is Order.stop else 0.0
            asyncio.get_running_loop().call_later(grace_s + _ENDS_WITHIN_S, self._kill)

    async def __call__(self) -> None:
        """Start the process, and hear it out until it has ended.

        When cancelled, it is told so, and has its last word.
        """
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self._process = await _started(theirs, self._start)
                except BaseException:
                    ours.close()
                    raise
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("no further process could be started: %s", reason)
            return
        channel = self._channel = await Channel.open(ours)
        hearing = asyncio.create_task(self._hear(channel))
        try:
            if self._orders:
                self._kill()
            channel.send(self._start)
            await asyncio.shield(hearing)
        except asyncio.CancelledError:
            self.order(Order.cancel)
            await asyncio.wait([hearing], timeout=_ENDS_WITHIN_S)
            raise
        finally:
            hearing.cancel()
            if not self._is_done:
                self._kill()
            await self._bury(channel)

    async def _hear(self, channel: Channel) -> None:
        async with asyncio.TaskGroup() as tasks:
            begun = {tasks.create_task(self._watch())}
            while (message := await channel.receive()) is not None:
                self._silent_s = 0
                if isinstance(message, Report):
                    self._take(message)
                elif isinstance(message, Fatal):
                    self._fail(message.error)
                elif isinstance(message, LogLine):
                    logging.getLogger(message.logger).log(message.level, "%s", message.text)
                elif isinstance(message, Borrow):
                    task = tasks.create_task(self._lend(channel, message))
                    begun.add(task)
                    task.add_done_callback(begun.discard)
            self._is_ready = False
            for task in begun:
                task.cancel()

    async def _watch(self) -> None:
        """Kill it when it has not been heard of for long, though it reports all the time."""
        while self._silent_s < SILENT_AT_MOST_S:
            # Second by second, since while this process was stopped, nothing could be heard.
            await asyncio.sleep(1)
            self._silent_s += 1
        log.error("a process of this run does not answer: it is killed")
        self._kill()

    def _take(self, report: Report) -> None:
        self._has_begun = self._is_ready = True
        self._is_done = report.is_last
        self.tally, self.in_flight = report.tally, report.in_flight
        self.query_limit, self.outage = report.query_limit, report.outage
        failures = dict(report.failures)
        for line in report.ended:
            self._ended(self._in_hand.pop(line), failures.get(line))
        self._changed()

    async def _lend(self, channel: Channel, wish: Borrow) -> None:
        try:
            if wish.accepted:
                self._tokens.accepted()
            if wish.refused is not None:
                self._tokens.refused(wish.refused)
            channel.send(Lent(await self._tokens.lend()))
        except BulkfetchError as error:
            channel.send(Lent(error))

    def _send_rows(self) -> None:
        if self._channel and self._to_send:
            self._channel.send(Rows(self._to_send))
        self._to_send = []

    async def _bury(self, channel: Channel) -> None:
        """Wait for the end of the process, and see to what it leaves."""
        self._is_ready = False
        await channel.close()
        ending = asyncio.ensure_future(self._process.wait()) if self._process else None
        if ending and not await _ends(ending):
            self._kill()
            await _ends(ending)
        self.outage, self.in_flight = None, InFlight()
        missing = self.tally.listed - self.tally.images.total()
        self.tally.images[ImageOutcome.not_reached] += missing
        rows, self._in_hand = list(self._in_hand.values()), {}
        if not self._is_done:
            status = ending.result() if ending and ending.done() else 0
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            # It begins with them in order, and has so many seats.
            self._died(rows[: self._seats], rows[self._seats :], how)
        self._changed()

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


def without_credentials(settings: Settings) -> Settings:
    """Return plain settings for a process that is lent its tokens."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    secrets = ("client_id", "client_secret", "client_secret_file", "token", "token_file")
    return Settings.model_construct(**{**values, **dict.fromkeys(secrets)})


async def _ends(ending: asyncio.Future[int]) -> bool:
    """Wait some seconds for the end of a process, however often cancelled; tell whether it came."""
    waiting = asyncio.ensure_future(asyncio.wait([ending], timeout=_ENDS_WITHIN_S))
    with suppress(asyncio.CancelledError):
        await files.to_its_end(waiting)
    return ending.done()


async def _started(end: socket.socket, start: Start) -> Process:
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
        process_group=0,
        env=environment,
    )


@contextmanager
def shared_file(processes: int) -> Iterator[int | None]:
    """Yield a descriptor of what the processes of a run share, None where there is but one."""
    if processes == 1:
        yield None
        return
    with files.named("the temporary directory"), tempfile.TemporaryFile(buffering=0) as file:
        # Written, and not only made that long: a full disk is noticed here.
        file.write(bytes(Budget.size_bytes(processes)))
        yield file.fileno()
