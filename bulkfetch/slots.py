"""How much may be under way at once, and how often something may begin, and both may change.

The slots of API requests adapt, too: fewer while the API says that it is too much. It is additive
increase, multiplicative decrease, as TCP does it (RFC 5681, section 3.1): each 429 or 503 halves
the number, each success adds one to it per round of requests, up to the bound.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from bulkfetch.logs import Event, about
from bulkfetch.words import counted

log = logging.getLogger(__name__)

# Of a schedule that was missed, so much is caught up with.
_CATCH_UP_S = 0.1


class Slots:
    """A semaphore whose size may change while it is held.

    Attributes:
        limit: how many may be held. What is held beyond a smaller one is not taken back.
        taken: how many are held now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_wanted(self) -> bool:
        """Whether any is held or waited for."""
        return self.taken > 0 or any(not turn.cancelled() for turn in self._waiting)

    def resize(self, limit: int) -> None:
        """Change how many there are."""
        self.limit = limit
        self._give()

    async def acquire(self) -> None:
        """Wait for a slot, first come, first served; `release` gives it back."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back."""
        self.taken -= 1
        self._give()

    def _give(self) -> None:
        while self._waiting and (self._waiting[0].cancelled() or self.taken < self.limit):
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.taken += 1
                turn.set_result(None)


class AdaptiveSlots(Slots):
    """Slots some of which are kept back while they would only be refused.

    Attributes:
        bound: slots when all is well.
    """

    def __init__(self, bound: int) -> None:
        super().__init__(bound)
        self.bound = bound
        self._adapted = float(bound)
        self._cuts = 0

    def resize(self, limit: int) -> None:
        """Change how many there are when all is well; what is kept back stays in proportion."""
        if limit != self.bound:
            share = self._adapted / self.bound if self.bound else 1.0
            self.bound = limit
            self._adapt(share * limit)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[int]:
        """Wait for a slot, and hold it; yields what `throttled` is to be told."""
        await self.acquire()
        try:
            yield self._cuts
        finally:
            self.release()

    def throttled(self, taken_at: int) -> None:
        """Note a 429 or 503 to a request that took its slot at `taken_at`.

        Requests that were in flight together are told the same thing; only the first counts.
        """
        if taken_at == self._cuts:
            self._cuts += 1
            self._adapt(self._adapted / 2)
            log.info(
                "the API says that it is too much: %s at once from now on",
                counted(self.limit, "query"),
                extra=about(Event.throttled, queries=self.limit),
            )

    def went_well(self) -> None:
        """Note a success."""
        if self._adapted < self.bound:
            self._adapt(self._adapted + 1 / self._adapted)

    def _adapt(self, slots: float) -> None:
        self._adapted = min(float(self.bound), max(1.0, slots))
        super().resize(int(self._adapted))


class Pace:
    """Turns that come evenly, rather than in a burst at the start of each second.

    They keep a schedule, so that what a loaded machine is late by is not lost: no more than `rate`
    come in a second, and a tenth of that at once on top, after a delay or a rest.

    Attributes:
        rate: turns a second; None for no bound, 0 for none until that changes.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        # When the last turn should have been.
        self._last_s = -math.inf
        self._line = asyncio.Lock()
        self._changed = asyncio.Event()

    def change(self, rate: float | None) -> None:
        """Change the rate, for those that wait as well."""
        self.rate = rate
        self._changed.set()

    async def turn(self) -> None:
        """Wait for a turn, first come, first served."""
        if self.rate is None:
            return
        now_s = asyncio.get_running_loop().time
        async with self._line:
            while (wait_s := self._due_s() - now_s()) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._changed.wait(), None if wait_s == math.inf else wait_s
                    )
            self._last_s = max(self._due_s(), now_s() - _CATCH_UP_S)

    def _due_s(self) -> float:
        if self.rate is None:
            return -math.inf
        return self._last_s + 1 / self.rate if self.rate else math.inf
