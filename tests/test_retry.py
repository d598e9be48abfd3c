"""The retry policy, with a clock, a sleep and a die of the tests' own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkfetch.breaker import Breaker
from bulkfetch.errors import (
    BadBodyError,
    BadResponseError,
    ConnectionFailedError,
    FetchError,
    HostDeniedError,
    StatusError,
    TimedOutError,
)
from bulkfetch.retry import (
    FIRST_WAIT_S,
    LONGEST_RETRY_AFTER_S,
    LONGEST_WAIT_S,
    Budget,
    Retry,
    retry_after_s,
)


class Failing:
    """Fails so many times, then succeeds."""

    def __init__(self, times: int, error: BaseException) -> None:
        self.times = times
        self.error = error
        self.attempts = 0

    async def __call__(self) -> str:
        self.attempts += 1
        if self.attempts <= self.times:
            raise self.error
        return "done"


class Waits(list[float]):
    """A sleep that takes no time and remembers."""

    async def sleep(self, seconds: float) -> None:
        self.append(seconds)


def policy(
    retries: int,
    waits: Waits,
    uniform: Callable[[float, float], float] = random.uniform,
) -> tuple[Retry, Budget]:
    """A policy of its own, with a breaker that none of these tests trips."""
    budget = Budget()
    breaker = Breaker("the API", 3600.0)
    return Retry(retries, budget, breaker, sleep=waits.sleep, uniform=uniform), budget


def busy(retry_after_s: float | None) -> StatusError:
    return StatusError("busy", 503, retry_after_s)


async def waited(retries: int, error: FetchError, share: float) -> Waits:
    """The waits of a call that never succeeds, where chance always takes this share."""
    waits = Waits()
    retry, _ = policy(retries, waits, uniform=lambda low, high: low + share * (high - low))
    with pytest.raises(type(error)):
        await retry("it", Failing(10_000, error))
    return waits


@pytest.mark.parametrize("retries", [0, 1, 2, 5, 100])
async def test_attempts_are_one_more_than_retries_and_the_last_error_is_raised(
    retries: int,
) -> None:
    waits = Waits()
    attempt = Failing(10_000, BadBodyError("short"))
    retry, budget = policy(retries, waits)
    with pytest.raises(BadBodyError) as caught:
        await retry("it", attempt)
    assert caught.value is attempt.error
    assert attempt.attempts == retries + 1
    assert budget.count == len(waits) == retries


@pytest.mark.parametrize("failures", [0, 1, 3])
async def test_the_first_success_is_returned(failures: int) -> None:
    waits = Waits()
    retry, budget = policy(3, waits)
    attempt = Failing(failures, ConnectionFailedError("broken"))
    assert await retry("it", attempt) == "done"
    assert attempt.attempts == failures + 1
    assert budget.count == failures


async def test_arguments_are_passed_on_and_one_policy_serves_many_calls() -> None:
    async def double(number: int, *, plus: int) -> int:
        return 2 * number + plus

    retry, budget = policy(1, Waits())
    answers = await asyncio.gather(*(retry("it", double, n, plus=1) for n in range(50)))
    assert answers == [2 * n + 1 for n in range(50)]
    assert budget.count == 0


@pytest.mark.parametrize(
    "error",
    [
        HostDeniedError("no"),
        StatusError("not there", 404),
        StatusError("no range", 416),
        BadResponseError("another shape", retryable=False),
        ConnectionFailedError("certificate", retryable=False),
        FetchError("failed"),
        ValueError("a mistake of ours"),
        TimeoutError("not by that name"),
        OSError("disk"),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
async def test_what_will_not_pass_is_raised_at_once(error: BaseException) -> None:
    waits = Waits()
    attempt = Failing(1, error)
    retry, _ = policy(5, waits)
    with pytest.raises(type(error)) as caught:
        await retry("it", attempt)
    assert caught.value is error
    assert attempt.attempts == 1
    assert waits == []


async def test_cancellation_ends_an_attempt_and_a_wait() -> None:
    started = asyncio.Event()

    async def hangs() -> None:
        started.set()
        await asyncio.Event().wait()

    class LongWaits(Waits):
        async def sleep(self, seconds: float) -> None:
            await hangs()

    failing = Failing(10, TimedOutError("nothing came"))
    retry, _ = policy(5, LongWaits())
    for calling in (retry("it", hangs), retry("it", failing)):
        started.clear()
        task = asyncio.ensure_future(calling)
        await asyncio.wait_for(started.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert failing.attempts == 1


async def test_waits_double_up_to_a_bound_and_jitter_takes_any_share_of_them() -> None:
    error = ConnectionFailedError("broken")
    whole = await waited(12, error, 1.0)
    assert whole == [min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**n) for n in range(12)]
    assert whole[-1] == LONGEST_WAIT_S
    assert await waited(12, error, 0.0) == [0.0] * 12
    assert await waited(12, error, 0.5) == [wait_s / 2 for wait_s in whole]


async def test_as_many_retries_as_can_be_asked_for_overflow_nothing() -> None:
    assert max(await waited(100, BadBodyError("short"), 1.0)) == LONGEST_WAIT_S


async def test_jitter_is_drawn_anew_for_each_wait_within_the_bounds() -> None:
    waits = Waits()
    retry, _ = policy(40, waits)
    with pytest.raises(BadBodyError):
        await retry("it", Failing(99, BadBodyError("short")))
    assert len(set(waits)) > 30
    assert all(
        0 <= wait_s <= min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**n) for n, wait_s in enumerate(waits)
    )


@given(asked_s=st.floats(0, 1e9), share=st.floats(0, 1))
def test_a_wait_is_never_shorter_than_asked_for_nor_longer_than_the_bound(
    asked_s: float, share: float
) -> None:
    for wait_s in asyncio.run(waited(9, busy(asked_s), share)):
        assert min(asked_s, LONGEST_RETRY_AFTER_S) <= wait_s
        assert wait_s <= max(LONGEST_RETRY_AFTER_S + 1, LONGEST_WAIT_S)


async def test_a_server_that_asks_for_no_wait_at_all_does_not_take_the_backoff_away() -> None:
    assert await waited(7, busy(0.0), 1.0) == [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


async def test_those_who_were_told_the_same_second_do_not_come_back_as_one() -> None:
    assert await waited(1, busy(10.0), 0.0) == [10.0]
    assert await waited(1, busy(10.0), 0.25) == [10.25]


NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60.0),
        ({"Retry-After": "Tuesday, 14-Nov-23 22:14:20 GMT"}, 60.0),
        ({"Retry-After": "Tue Nov 14 22:14:20 2023"}, 60.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:14:20 -0000"}, 60.0),
        ({"Retry-After": "Tue, 14 Nov 2023 23:14:20 +0100"}, 60.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "1 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"Retry-After": "1 Jan 2026 00:00:00 +99999999999999"}, None),
        ({"Retry-After": "Mon, 32 Jan 2026 25:61:61 GMT"}, None),
        ({"X-RateLimit-Reset": "30"}, 30.0),
        ({"X-RateLimit-Reset": "1700000045"}, 45.0),
        ({"X-RateLimit-Reset": "1699999999"}, 0.0),
        ({"X-RateLimit-Reset": "soon"}, None),
        ({"Retry-After": "5", "X-RateLimit-Reset": "30"}, 5.0),
    ],
    ids=str,
)
def test_how_long_a_server_wants_to_be_left_alone(
    headers: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for zone in ("UTC", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            assert retry_after_s(429, headers, NOW) == seconds
        finally:
            monkeypatch.delenv("TZ")
            time.tzset()


@pytest.mark.parametrize("status", [408, 500, 502])
def test_a_reset_time_that_comes_with_any_other_status_is_not_waited_for(status: int) -> None:
    assert retry_after_s(status, {"X-RateLimit-Reset": "30"}, NOW) is None
    assert retry_after_s(status, {"Retry-After": "30"}, NOW) == 30.0


DATE_LIKE = st.from_regex(
    r"\A(\w{1,4},? )?\d{1,3}[ -]\w{3}[ -]\d{1,20} \d{1,3}:\d{1,3}(:\d{1,3})? (GMT|[+-]\d{1,15})\Z"
)


@given(st.text() | DATE_LIKE | st.text("0123456789 .-+e\t\x1f"))
def test_no_text_of_a_server_breaks_the_reading_of_it(text: str) -> None:
    for name in ("Retry-After", "X-RateLimit-Reset"):
        seconds = retry_after_s(503, {name: text}, NOW)
        assert seconds is None or seconds >= 0
