"""Rows dealt out to the processes of a run, and again where one died with them in hand."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence

from bulkfetch.models import ManifestRow
from bulkfetch.pipeline.crew import Member
from bulkfetch.pipeline.patients import Patients

_ROWS_AT_ONCE = 256


class Dealer:
    """Gives each row to who can begin with it soonest, until the run is to stop.

    Attributes:
        crew: who takes part: the run's own process perhaps, and the helpers.
        is_stopped: nothing more is dealt out.
    """

    def __init__(self) -> None:
        self.crew: Sequence[Patients | Member] = []
        self.is_stopped = False
        self._has_room = asyncio.Event()
        # What members that died had in hand, and is to be given to others.
        self._returned: deque[ManifestRow] = deque()
        # By a row's line, how many members died with it in hand.
        self._deaths: Counter[int] = Counter()

    def look(self) -> None:
        """Look again who has room."""
        self._has_room.set()

    def stop(self) -> None:
        """Deal out nothing more."""
        self.is_stopped = True
        self.look()

    async def deal(self, row: ManifestRow) -> bool:
        """Give a row to somebody, or return False when the run is to stop."""
        while not self.is_stopped:
            if (least_busy := max(self.crew, key=lambda one: (one.has_room, one.free))).has_room:
                least_busy.begin(row)
                return True
            self._has_room.clear()
            await self._has_room.wait()
        return False

    async def deal_again(self, helpers: Sequence[Member]) -> None:
        """Give what the dead had in hand to others, until no helper has anything in hand."""
        while not self.is_stopped and (self._returned or any(h.is_busy for h in helpers)):
            self._has_room.clear()
            if self._returned:
                await self.deal(self._returned.popleft())
            else:
                await self._has_room.wait()

    def take_back(
        self, begun: Sequence[ManifestRow], waiting: Sequence[ManifestRow], lives: int
    ) -> list[ManifestRow]:
        """Take what a member that died had in hand, and return the rows that took all `lives`."""
        self._returned += waiting
        self._deaths.update(row.line for row in begun)
        self._returned += [row for row in begun if self._deaths[row.line] < lives]
        return [row for row in begun if self._deaths[row.line] >= lives]


async def in_batches(rows: Iterator[ManifestRow]) -> AsyncIterator[ManifestRow]:
    """Yield rows that a thread reads, some hundred at a time."""
    while batch := await asyncio.to_thread(lambda: list(itertools.islice(rows, _ROWS_AT_ONCE))):
        for row in batch:
            yield row
