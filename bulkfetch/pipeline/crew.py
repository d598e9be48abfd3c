"""Who sees to the patients of a run, as its first process knows them, wherever they are.

A member is given rows, lent tokens, and told when to stop; it reports what became of the rows. An
engine starts them, and says what bounds them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from bulkfetch.api import Tokens
from bulkfetch.errors import BulkfetchError
from bulkfetch.journal import Failure
from bulkfetch.logs import Event, about
from bulkfetch.measures import InFlight
from bulkfetch.models import ManifestRow
from bulkfetch.outcomes import Outcome
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
from bulkfetch.retry import Retries
from bulkfetch.settings import Settings
from bulkfetch.tally import Tally
from bulkfetch.transport import Transport

# A member is heard of twice a second; one that is not for so long is stopped, or stuck.
SILENT_AT_MOST_S = 60
# Ending takes a member its last writes; one that takes longer is stuck, and killed.
ENDS_WITHIN_S = 3.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ties:
    """What a member has of the run's first process.

    `ended` is told how each patient failed, or None; `died`, when the member ended early, those
    that it was at, those that it had not begun, and how it ended; `fail` what ends the run;
    `tell` outcomes, if they are wanted; `changed` that something is new.
    """

    tokens: Tokens
    ended: Callable[[ManifestRow, Failure | None], None]
    died: Callable[[Sequence[ManifestRow], Sequence[ManifestRow], str], None]
    fail: Callable[[BulkfetchError], None]
    tell: Callable[[Sequence[Outcome]], None] | None
    changed: Callable[[], None]


class Engine(AbstractAsyncContextManager["Engine"], Protocol):
    """What a run's processes are started by; a context, in which it is ready.

    Attributes:
        share: the settings of the first process, with what bounds it alone.
        retries: as the first process takes them.
        processes: how many there are to be, the first included if it sees to patients, too.
        first_takes_part: whether it does.
        lives: how many members a patient may take along before it is given up.
    """

    @property
    def share(self) -> Settings: ...
    @property
    def retries(self) -> Retries: ...
    @property
    def processes(self) -> int: ...
    @property
    def first_takes_part(self) -> bool: ...
    @property
    def lives(self) -> int: ...

    def crew(self, start: Start, transport: Transport, ties: Ties) -> Sequence[Member]:
        """Return the other members, each of whose lives is to be awaited.

        `start` is what they are told, but for their numbers and shares; `transport` is the first
        process's own.
        """


class Member:
    """One of those that see to patients; `await member()` is its whole life.

    Attributes:
        tally: its sums, as far as it told.
        in_flight: what it has under way.
        kept_back: how many queries fewer it has in flight, since the API says that it is too much.
        outage: what it waits for, in words; None when all is well.
    """

    def __init__(self, start: Start, ties: Ties) -> None:
        self._start = start
        self._ties = ties
        self.tally = Tally()
        self.in_flight = InFlight()
        self.kept_back = 0
        self.outage: str | None = None
        self._seats = seats_of(start.settings)
        self._in_hand: dict[int, ManifestRow] = {}
        self._to_send: list[ManifestRow] = []
        self._orders: list[Order] = []
        self._channel: Channel | None = None
        self._before = Tally()
        self._has_begun = False
        self._is_ready = False
        self._is_done = False
        self._silent_s = 0

    async def __call__(self) -> None:
        """Start it, and hear it out until it has ended.

        When cancelled, it is told so, and has its last word.
        """
        raise NotImplementedError

    def _kill(self) -> None:
        """End it at once, wherever it is."""
        raise NotImplementedError

    @property
    def is_busy(self) -> bool:
        """Whether it has any patient in hand."""
        return bool(self._in_hand)

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
            asyncio.get_running_loop().call_later(grace_s + ENDS_WITHIN_S, self._kill)

    async def _hear_out(self, channel: Channel, *, ended: Awaitable[str]) -> None:
        """Have a life begin at the other end of a channel, hear it out, and see to what it leaves.

        `ended` waits for its end, and says how it was.
        """
        self._channel = channel
        hearing = asyncio.create_task(self._hear(channel))
        try:
            if self._orders:
                self._kill()
            channel.send(self._start)
            await asyncio.shield(hearing)
        except asyncio.CancelledError:
            self.order(Order.cancel)
            await asyncio.wait([hearing], timeout=ENDS_WITHIN_S)
            raise
        finally:
            hearing.cancel()
            if not self._is_done:
                self._kill()
            self._is_ready = False
            self._bury(await ended)

    async def _hear(self, channel: Channel) -> None:
        async with asyncio.TaskGroup() as tasks:
            begun = {tasks.create_task(self._watch())}
            while (message := await channel.receive()) is not None:
                self._silent_s = 0
                if isinstance(message, Report):
                    self._take(message)
                elif isinstance(message, Fatal):
                    self._ties.fail(message.error)
                elif isinstance(message, LogLine):
                    message.repeat()
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
        log.error(
            "a process of this run does not answer: it is killed",
            extra=about(Event.process_silent, silent_s=self._silent_s),
        )
        self._kill()

    def _take(self, report: Report) -> None:
        self._has_begun = self._is_ready = True
        self._is_done = report.is_last
        self.tally, self.in_flight = self._before + report.tally, report.in_flight
        self.kept_back, self.outage = report.kept_back, report.outage
        failures = dict(report.failures)
        for line in report.ended:
            self._ties.ended(self._in_hand.pop(line), failures.get(line))
        if self._ties.tell:
            self._ties.tell(report.outcomes)
        self._ties.changed()

    async def _lend(self, channel: Channel, wish: Borrow) -> None:
        try:
            if wish.accepted:
                self._ties.tokens.accepted()
            if wish.refused is not None:
                self._ties.tokens.refused(wish.refused)
            token = await self._ties.tokens.lend()
            channel.send(Lent(token.text, token.renew_at - time.monotonic()))
        except BulkfetchError as error:
            channel.send(Lent(error))

    def _send_rows(self) -> None:
        if self._channel and self._to_send:
            self._channel.send(Rows(self._to_send))
        self._to_send = []

    def _bury(self, how: str) -> None:
        self.outage, self.in_flight, self.kept_back = None, InFlight(), 0
        self._before = self.tally
        rows, self._in_hand, self._to_send = list(self._in_hand.values()), {}, []
        if not self._is_done:
            # It begins with them in order, and has so many seats.
            self._ties.died(rows[: self._seats], rows[self._seats :], how)
        self._ties.changed()


def without_credentials(settings: Settings) -> Settings:
    """Return plain settings for a process that is lent its tokens."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    secrets = ("client_id", "client_secret", "client_secret_file", "token", "token_file")
    return Settings.model_construct(**{**values, **dict.fromkeys(secrets)})
