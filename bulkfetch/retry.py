"""The one retry policy: every query and every download is tried by it, and nothing else retries.

An attempt covers opening *and* reading a body. Waits are exponential with full jitter
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), or what the server
asked for, whichever is longer.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC
from typing import Any, ParamSpec, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
)

from bulkfetch.errors import FetchError

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
# A server may ask for hours; a wait this long is taken, a longer one is cut to it, so that every
# wait has a bound and a run ends.
LONGEST_RETRY_AFTER_S = 300.0
# A smaller number in X-RateLimit-Reset is seconds from now, a larger one a time: both are in use.
_EPOCH_BEGINS = 1_000_000_000

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Retry:
    """Calls something again while it fails with what may pass.

    Attributes:
        count: attempts made beyond the first ones, in all.
    """

    def __init__(
        self,
        retries: int,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._retries = retries
        self._sleep = sleep
        self._uniform = uniform
        self.count = 0

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

        async def note_and_sleep(seconds: float) -> None:
            self.count += 1
            await self._sleep(seconds)

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            wait_s = state.next_action.sleep if state.next_action else 0.0
            log.info("%s: %s; trying again in %.1f s", what, error, wait_s)

        # A new one for each call: tenacity's object holds the state of one loop.
        retrying = AsyncRetrying(
            sleep=note_and_sleep,
            stop=stop_after_attempt(self._retries + 1),
            wait=self._wait,
            retry=retry_if_exception(_may_pass),
            before_sleep=tell,
            reraise=True,
        )
        return await retrying(attempt, *args, **kwargs)

    def _wait(self, state: RetryCallState) -> float:
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (state.attempt_number - 1))
        wait_s = self._uniform(0.0, longest)
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, FetchError) and error.retry_after_s is not None:
            # Jitter on top: those who were told the same second do not come back as one.
            asked_s = min(error.retry_after_s, LONGEST_RETRY_AFTER_S) + self._uniform(0.0, 1.0)
            return max(wait_s, asked_s)
        return wait_s


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Read how long a server wants to be left alone, in seconds from `now` (Unix time), or None.

    `Retry-After` is seconds or a date (RFC 9110, section 10.2.3); `X-RateLimit-Reset` is seconds
    or a Unix time, by convention only.
    """
    if (text := headers.get("Retry-After")) is not None:
        if text.strip().isdecimal():
            return float(text)
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        # Without a zone it is the older form of the same section, which is in UTC too.
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    text = headers.get("X-RateLimit-Reset", "").strip()
    if not text.isdecimal():
        return None
    value = float(text)
    return max(0.0, value - now) if value > _EPOCH_BEGINS else value


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, FetchError) and error.retryable
