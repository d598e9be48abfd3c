"""The one retry policy: every query and every download is tried by it, and nothing else retries.

An attempt covers opening *and* reading a body. Waits are exponential with full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), or what the server
asked for, whichever is longer.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import mmap
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC
from typing import Any, ParamSpec, Protocol, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
)

from bulkfetch.breaker import Breaker
from bulkfetch.errors import FetchError

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
# A server may ask for hours; a wait this long is taken, a longer one is cut to it, so that every
# wait has a bound and a run ends.
LONGEST_RETRY_AFTER_S = 300.0
FIRST_RETRIES = 200
RETRIES_PER_SUCCESS = 3
# A smaller number in X-RateLimit-Reset is seconds from now, a larger one a time: both are in use.
_EPOCH_BEGINS = 1_000_000_000

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Retries(Protocol):
    """Whom a retry is asked of."""

    @property
    def count(self) -> int:
        """Retries that the run has taken so far, as far as is known here."""

    def take(self) -> bool:
        """Take a retry, if there is one left."""

    def note_success(self) -> None:
        """Note that a call succeeded in the end."""


class Budget:
    """The retries of a whole run, so that a service in trouble is not hammered.

    There are `FIRST_RETRIES`, and `RETRIES_PER_SUCCESS` more for each success: where a third of all
    requests fail, half a retry is needed for each success, so that it never bites; where hardly
    any succeeds, it is soon spent.

    Args:
        shared: a descriptor of a file of `Budget.size_bytes(processes)` zeros, where each process
            of the run notes its own numbers and reads the others'; None where there is but one.
        number: which of the processes this is, from 1.
    """

    def __init__(self, shared: int | None = None, number: int = 1, processes: int = 1) -> None:
        memory = mmap.mmap(-1 if shared is None else shared, self.size_bytes(processes))
        # For each process its retries and its successes; none writes to another's.
        self._numbers = memoryview(memory).cast("q")
        self._retries = 2 * (number - 1)
        self._successes = self._retries + 1

    @staticmethod
    def size_bytes(processes: int) -> int:
        """How large a shared file is to be."""
        return 2 * 8 * processes

    @property
    def count(self) -> int:
        """Retries that the run has taken so far."""
        return sum(self._numbers[::2])

    def take(self) -> bool:
        """Take a retry, if there is one left."""
        if self.count >= FIRST_RETRIES + RETRIES_PER_SUCCESS * sum(self._numbers[1::2]):
            return False
        self._numbers[self._retries] += 1
        return True

    def note_success(self) -> None:
        """Note that a call succeeded in the end."""
        self._numbers[self._successes] += 1


class Retry:
    """Calls something again while it fails with what may pass.

    `retried` is where that is counted, by the kind of the error.
    """

    def __init__(
        self,
        retries: int,
        budget: Retries,
        breaker: Breaker,
        retried: Counter[str] | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._retries = retries
        self._budget = budget
        self._breaker = breaker
        self._retried = Counter[str]() if retried is None else retried
        self._sleep = sleep
        self._uniform = uniform

    async def __call__(
        self,
        what: str,
        attempt: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Await `attempt(*args, **kwargs)` until it succeeds, and return its result.

        `what` names the item in the log. Raises the last error when the attempts are used up, and
        any error that is not a retryable `FetchError` at once.
        """
        first_error: FetchError | None = None

        async def guarded() -> T:
            nonlocal first_error
            if first_error is not None:
                error, first_error = first_error, None
                raise error
            return await self._breaker.call(lambda: attempt(*args, **kwargs))

        try:
            result = await guarded()
        except FetchError as error:
            if not error.retryable:
                raise
            # Only now is tenacity needed, which takes a while to set up; this was its first try.
            first_error = error
            result = await self._again(what, guarded)
        self._budget.note_success()
        return result

    async def _again(self, what: str, guarded: Callable[[], Coroutine[Any, Any, T]]) -> T:

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, FetchError):
                self._retried[error.kind] += 1
            wait_s = state.next_action.sleep if state.next_action else 0.0
            log.info("%s: %s; trying again in %.1f s", what, error, wait_s)

        # A new one for each call: tenacity's object holds the state of one loop.
        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=self._stop,
            wait=self._wait,
            retry=retry_if_exception(_may_pass),
            before_sleep=tell,
            reraise=True,
        )

        result: T = await retrying(guarded)
        return result

    def _stop(self, state: RetryCallState) -> bool:
        return state.attempt_number > self._retries or not self._budget.take()

    def _wait(self, state: RetryCallState) -> float:
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (state.attempt_number - 1))
        wait_s = self._uniform(0.0, longest)
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, FetchError) and error.retry_after_s is not None:
            # Jitter on top: those who were told the same second do not come back as one.
            asked_s = min(error.retry_after_s, LONGEST_RETRY_AFTER_S) + self._uniform(0.0, 1.0)
            return max(wait_s, asked_s)
        return wait_s


def retry_after_s(status: int, headers: Mapping[str, str], now: float) -> float | None:
    """Read how long a server wants to be left alone, in seconds from `now` (Unix time), or None.

    `Retry-After` is seconds or a date (RFC 9110, section 10.2.3); `X-RateLimit-Reset` is seconds
    or a Unix time, by convention only, and speaks of 429 and 503: some send it with every answer.
    """
    if (text := headers.get("Retry-After")) is not None:
        if (text := text.strip()).isdecimal():
            return float(text)
        at = http_date(text)
        return None if at is None else max(0.0, at - now)
    text = headers.get("X-RateLimit-Reset", "").strip()
    if status not in (429, 503) or not text.isdecimal():
        return None
    value = float(text)
    return max(0.0, value - now) if value > _EPOCH_BEGINS else value


def http_date(text: str) -> float | None:
    """Read an HTTP date (RFC 9110, section 5.6.7) as Unix time, None where it is none."""
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # Without a zone it is the older form of the same section, which is in UTC too.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, FetchError) and error.retryable
