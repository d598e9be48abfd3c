"""A service that fails again and again is left alone for a while, then asked by one call only.

The pattern is the circuit breaker of M. T. Nygard's "Release It!": closed while all is well, open
after many failures in a row, and closed again by the first success.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bulkfetch.errors import (
    ConnectionFailedError,
    FetchError,
    ServiceDownError,
    StatusError,
    TimedOutError,
)
from bulkfetch.logs import Event, about

FAILURES_IN_A_ROW = 20
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 30.0
# One that never answered in this run is not waited for as long as one that did.
PATIENCE_AT_FIRST_S = 30.0

log = logging.getLogger(__name__)

T = TypeVar("T")


class Breaker:
    """Lets calls to one service through, or makes them wait.

    Connection errors, timeouts, 429 and 5xx are failures; any other answer shows that the service
    lives. While it is open, calls wait in line; after each pause the first of them is tried, and
    if that fails it goes back in line, without an error to its caller.

    `has_answered` says that somebody else is there to judge a service that never answered.
    """

    def __init__(
        self,
        service: str,
        patience_s: float,
        *,
        has_answered: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._service = service
        self._patience_s = patience_s
        self._has_answered = has_answered
        self._clock = clock
        self._sleep = sleep
        self._failures = 0
        self._opened_at: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._turn = asyncio.Lock()

    @property
    def state(self) -> str | None:
        """What to tell a person while the service is left alone; None when all is well."""
        if self._opened_at is None:
            return None
        return f"{self._service} is failing: paused for {self._waited_s():.0f} s"

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `await attempt()`, once the service may be asked.

        Raises:
            ServiceDownError: the service did not come back within `patience_s`, or within
                `PATIENCE_AT_FIRST_S` if it never answered.
            Whatever `attempt` raises, but for a failure of one that was a probe.
        """
        while self._is_open():
            async with self._turn:
                if not self._is_open():
                    break
                self._give_up_in_time()
                await self._sleep(self._pause_s)
                try:
                    result = await attempt()
                except FetchError as error:
                    if not _is_failure(error):
                        self._close()
                        raise
                    self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
                    log.warning(
                        "%s; next try in %.0f s",
                        error,
                        self._pause_s,
                        extra=about(
                            Event.service_still_failing,
                            service=self._service,
                            kind=error.kind,
                            error=str(error),
                            pause_s=self._pause_s,
                        ),
                    )
                else:
                    self._close()
                    return result
        try:
            result = await attempt()
        except FetchError as error:
            if _is_failure(error):
                self._note_failure(error)
            else:
                self._close()
            raise
        self._close()
        return result

    def _is_open(self) -> bool:
        return self._opened_at is not None

    def _give_up_in_time(self) -> None:
        patience_s = self._patience_s
        if not self._has_answered:
            patience_s = min(patience_s, PATIENCE_AT_FIRST_S)
        if self._waited_s() > patience_s:
            raise ServiceDownError(
                f"{self._service} has been failing for {self._waited_s():.0f} s: "
                "run the same command again when it is well"
            )

    def _note_failure(self, error: FetchError) -> None:
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW and self._opened_at is None:
            self._opened_at = self._clock()
            self._pause_s = FIRST_PAUSE_S
            log.warning(
                "%d failures in a row, the last: %s; leaving it alone for %.0f s",
                self._failures,
                error,
                self._pause_s,
                extra=about(
                    Event.service_paused,
                    service=self._service,
                    kind=error.kind,
                    error=str(error),
                    failures=self._failures,
                    pause_s=self._pause_s,
                ),
            )

    def _close(self) -> None:
        if self._opened_at is not None:
            log.warning(
                "%s is well again after %.0f s",
                self._service,
                self._waited_s(),
                extra=about(
                    Event.service_recovered,
                    service=self._service,
                    paused_s=round(self._waited_s(), 3),
                ),
            )
        self._failures = 0
        self._opened_at = None
        self._has_answered = True

    def _waited_s(self) -> float:
        return 0.0 if self._opened_at is None else self._clock() - self._opened_at


def _is_failure(error: FetchError) -> bool:
    if isinstance(error, StatusError):
        return error.status == 429 or error.status >= 500
    return isinstance(error, ConnectionFailedError | TimedOutError)
