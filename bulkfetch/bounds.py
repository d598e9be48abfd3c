"""What bounds a run, divided among processes that come and go, on however many machines.

Each holds a share on a lease, which it renews all the time. It takes more only when another one has
given back, so that at no moment the shares add up to more than the run's bound; that of a process
that died comes free when its lease ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from bulkfetch.errors import EngineError
from bulkfetch.retry import FIRST_RETRIES, RETRIES_PER_SUCCESS
from bulkfetch.settings import Settings
from bulkfetch.slots import AdaptiveSlots, Pace, Slots

# A process that could not renew its lease for so long ends, since its share is another's by then.
LEASE_S = 15.0
_RENEW_EVERY_S = 0.5
# What was given back, or is to come, is soon asked after.
_RENEW_AGAIN_S = 0.05


class Share(NamedTuple):
    """So many API requests and downloads at once, requests a second, and retries to be taken."""

    queries: int = 0
    downloads: int = 0
    rate: float = 0.0
    retries: int = 0

    def at_least(self, other: Share) -> Share:
        """Return the larger of each."""
        return Share(
            max(self.queries, other.queries),
            max(self.downloads, other.downloads),
            max(self.rate, other.rate),
            max(self.retries, other.retries),
        )


class Wish(NamedTuple):
    """What a process says when it renews its lease.

    Attributes:
        held: what it may still be using.
        most: what it could use.
        retries: taken since it began.
        successes: calls that succeeded in the end, since it began.
    """

    held: Share
    most: Share
    retries: int
    successes: int


class Lease(NamedTuple):
    """What a process may use until it renews; `retries` are those of the whole run so far."""

    share: Share
    retries: int


@dataclass(slots=True)
class _Lessee:
    held: Share
    most: Share
    ends_at: float


class Bounds:
    """The one holder of a run's bounds: `queries`, `downloads` and `rate`; retries by successes."""

    def __init__(
        self,
        queries: int,
        downloads: int,
        rate: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._whole = Share(queries, downloads, rate or 0.0)
        self._clock = clock
        self._lessees: dict[int, _Lessee] = {}
        # Of the dead, too.
        self._spent: dict[int, tuple[int, int]] = {}

    def renew(self, number: int, wish: Wish) -> Lease:
        """Return what a process may use for the next `LEASE_S` seconds; it is known by its number.

        A share that became smaller is another's only when the next wish says that it is not held.
        """
        now = self._clock()
        lessees = {n: one for n, one in self._lessees.items() if one.ends_at > now}
        this = lessees[number] = _Lessee(wish.held, wish.most, now + LEASE_S)
        self._lessees = lessees
        self._spent[number] = (wish.retries, wish.successes)
        taken, successes = self.count(), sum(good for _, good in self._spent.values())
        left = FIRST_RETRIES + RETRIES_PER_SUCCESS * successes - taken
        whole = self._whole._replace(retries=left)
        queries, downloads, rate, retries = (
            self._part(number, name, whole) for name in Share._fields
        )
        share = Share(int(queries), int(downloads), rate, int(retries))
        this.held = wish.held.at_least(share)
        return Lease(share, taken)

    def leave(self, number: int, retries: int, successes: int) -> None:
        """Take back what a process held that uses it no longer, and note its last numbers."""
        self._lessees.pop(number, None)
        self._spent[number] = (retries, successes)

    def count(self) -> int:
        """Return the retries that the run has taken so far."""
        return sum(retries for retries, _ in self._spent.values())

    def _part(self, number: int, name: str, whole: Share) -> float:
        def of(share: Share) -> float:
            found: float = getattr(share, name)
            return found

        if not of(self._lessees[number].most):
            return 0
        wanting = sorted(n for n, one in self._lessees.items() if of(one.most))
        held = sum(of(one.held) for n, one in self._lessees.items() if n != number)
        total = of(whole)
        if isinstance(total, int):
            part: float = total // len(wanting) + (wanting.index(number) < total % len(wanting))
        else:
            part = total / len(wanting)
        return max(0, min(part, of(self._lessees[number].most), total - held))


class LentRetries:
    """The retries that one process may take until it renews its lease: as `Budget` is used.

    Attributes:
        count: retries of the whole run, as far as it was told.
        taken: of this process.
        successes: the same.
        left: how many more it may take.
    """

    def __init__(self) -> None:
        self.count = self.taken = self.successes = self.left = 0

    def take(self) -> bool:
        """Take a retry, if there is one left."""
        if self.left <= 0:
            return False
        self.left -= 1
        self.taken += 1
        return True

    def note_success(self) -> None:
        """Note that a call succeeded in the end."""
        self.successes += 1


class Tenant:
    """One process's lease, applied to what it bounds: all of it is kept at 0 before the first.

    `renew` and `leave` are those of `Bounds`, for this process. `is_idle` says when no share is
    needed of what there is of `queries` and `rate`.
    """

    def __init__(
        self,
        settings: Settings,
        renew: Callable[[Wish], Awaitable[Lease]],
        *,
        queries: AdaptiveSlots,
        pace: Pace,
        retries: LentRetries,
        downloads: Slots | None = None,
    ) -> None:
        self._most = Share(
            settings.query_concurrency,
            settings.download_concurrency if downloads else 0,
            settings.rate_limit or 0.0,
            FIRST_RETRIES,
        )
        self._is_worker = downloads is not None
        self._renew = renew
        self._queries = queries
        self._pace = pace
        self._retries = retries
        self._downloads = downloads or Slots(0)
        self._apply(Share())

    async def keep(self) -> None:
        """Renew the lease for ever.

        Raises:
            EngineError: it could not be renewed in time, or who holds the bounds is gone.
        """
        good_from = time.monotonic()
        while True:
            asked_at = time.monotonic()
            wish = self._wish()
            try:
                async with asyncio.timeout(good_from + LEASE_S - asked_at):
                    lease = await self._renew(wish)
            except TimeoutError:
                raise EngineError("what bounds the run could not be asked after in time") from None
            good_from = asked_at
            self._retries.count = lease.retries
            self._apply(lease.share)
            # Those that were taken while the answer came are not in it.
            self._retries.left -= self._retries.taken - wish.retries
            is_settled = lease.share[:3] == wish.held[:3]
            await asyncio.sleep(_RENEW_EVERY_S if is_settled else _RENEW_AGAIN_S)

    def _wish(self) -> Wish:
        held = Share(
            max(self._queries.bound, self._queries.taken),
            max(self._downloads.limit, self._downloads.taken),
            self._pace.rate or 0.0,
            max(0, self._retries.left),
        )
        most = self._most
        if not self._is_worker:
            # It only signs in now and then: one request at a time.
            most = Share(1, 0, most.rate, 1) if self._queries.is_wanted else Share()
        return Wish(held, most, self._retries.taken, self._retries.successes)

    def _apply(self, share: Share) -> None:
        self._queries.resize(share.queries)
        self._downloads.resize(share.downloads)
        if self._most.rate:
            self._pace.change(share.rate)
        self._retries.left = share.retries
