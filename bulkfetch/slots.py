"""How many API requests may be in flight: fewer while the API says that it is too much.

Additive increase, multiplicative decrease, as TCP does it (RFC 5681, section 3.1): each 429 or 503
halves the number, each success adds one to it per round of requests, up to the bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class AdaptiveSlots:
    """A semaphore that keeps some of its slots back while they would only be refused.

    Attributes:
        bound: slots when all is well.
        taken: how many are held now.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.taken = 0
        self._semaphore = asyncio.Semaphore(bound)
        self._limit = float(bound)
        self._kept_back = 0
        self._cuts = 0

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[int]:
        """Wait for a slot, and hold it; yields what `throttled` is to be told."""
        await self._semaphore.acquire()
        self.taken += 1
        try:
            yield self._cuts
        finally:
            self.taken -= 1
            if self._kept_back < self.bound - self.limit:
                self._kept_back += 1
            else:
                self._semaphore.release()

    def throttled(self, taken_at: int) -> None:
        """Note a 429 or 503 to a request that took its slot at `taken_at`.

        Requests that were in flight together are told the same thing; only the first counts.
        """
        if taken_at == self._cuts:
            self._cuts += 1
            self._limit = max(1.0, self._limit / 2)

    def went_well(self) -> None:
        """Note a success."""
        self._limit = min(float(self.bound), self._limit + 1 / self._limit)
        while self._kept_back > self.bound - self.limit:
            self._kept_back -= 1
            self._semaphore.release()
