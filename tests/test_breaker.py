"""A service in trouble is left alone and probed; time is made up, so no test waits."""

from __future__ import annotations

import asyncio

import pytest

from bulkfetch.breaker import (
    FAILURES_IN_A_ROW,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    PATIENCE_AT_FIRST_S,
    Breaker,
)
from bulkfetch.errors import (
    BadBodyError,
    ConnectionFailedError,
    FetchError,
    ServiceDownError,
    StatusError,
    TimedOutError,
)

DOWN = StatusError("down", 503)


class World:
    """A clock that sleeping moves, and a service that is up or down."""

    def __init__(self, patience_s: float = 300.0) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.calls = 0
        self.in_flight = self.most_in_flight = 0
        self.error: FetchError | None = None
        self.up_again_at = float("inf")
        self.breaker = Breaker("the service", patience_s, clock=lambda: self.now, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def ask(self) -> str:
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        if self.error is not None and self.now < self.up_again_at:
            raise self.error
        return "well"

    async def call(self) -> str:
        return await self.breaker.call(self.ask)

    async def fail(self, times: int, error: FetchError = DOWN) -> None:
        self.error = error
        for _ in range(times):
            with pytest.raises(type(error)):
                await self.call()


async def test_it_opens_after_the_failures_in_a_row_and_not_before() -> None:
    world = World()
    await world.fail(FAILURES_IN_A_ROW - 1)
    assert world.breaker.state is None
    await world.fail(1)
    assert "the service is failing" in (world.breaker.state or "")
    assert FAILURES_IN_A_ROW == 20
    assert FIRST_PAUSE_S <= 5


@pytest.mark.parametrize(
    "error",
    [StatusError("", 429), StatusError("", 500), ConnectionFailedError(""), TimedOutError("")],
)
async def test_connection_errors_timeouts_429_and_5xx_are_failures(error: FetchError) -> None:
    world = World()
    await world.fail(FAILURES_IN_A_ROW, error)
    assert world.breaker.state is not None


@pytest.mark.parametrize("error", [StatusError("", 404), StatusError("", 403), BadBodyError("")])
async def test_an_answer_of_any_other_kind_shows_that_the_service_lives(error: FetchError) -> None:
    world = World()
    await world.fail(FAILURES_IN_A_ROW - 1)
    await world.fail(1, error)
    await world.fail(FAILURES_IN_A_ROW - 1)
    assert world.breaker.state is None


async def test_one_call_at_a_time_probes_and_its_failure_is_nobodys_error() -> None:
    world = World()
    assert await world.call() == "well"
    await world.fail(FAILURES_IN_A_ROW)
    world.up_again_at = 60.0
    world.most_in_flight = 0
    calls = world.calls
    answers = await asyncio.gather(*(world.call() for _ in range(10)))
    assert answers == ["well"] * 10
    assert world.pauses == [2.0, 4.0, 8.0, 16.0, 30.0]
    probes = len(world.pauses)
    assert world.calls == calls + probes + 9
    assert world.breaker.state is None


async def test_while_it_is_open_no_two_calls_are_in_flight() -> None:
    world = World()
    assert await world.call() == "well"
    await world.fail(FAILURES_IN_A_ROW)
    world.up_again_at = 100.0
    world.most_in_flight = 0
    waiting = [asyncio.create_task(world.call()) for _ in range(10)]
    while world.now < 90:  # noqa: ASYNC110  the time is made up
        await asyncio.sleep(0)
    assert world.most_in_flight == 1
    await asyncio.gather(*waiting)


async def test_pauses_grow_to_a_bound() -> None:
    world = World(patience_s=1000.0)
    assert await world.call() == "well"
    await world.fail(FAILURES_IN_A_ROW)
    world.up_again_at = 500.0
    await world.call()
    assert max(world.pauses) == LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("answered_before", "patience_s"), [(True, 300.0), (False, PATIENCE_AT_FIRST_S)]
)
async def test_it_gives_up_in_the_end_sooner_if_the_service_never_answered(
    answered_before: bool, patience_s: float
) -> None:
    world = World()
    if answered_before:
        await world.call()
    await world.fail(FAILURES_IN_A_ROW)
    with pytest.raises(ServiceDownError, match="the service has been failing"):
        await world.call()
    assert patience_s < world.now <= patience_s + LONGEST_PAUSE_S
    calls = world.calls
    with pytest.raises(ServiceDownError):
        await world.call()
    assert world.calls == calls


async def test_a_cancelled_probe_leaves_the_turn_to_another() -> None:
    world = World()
    assert await world.call() == "well"
    await world.fail(FAILURES_IN_A_ROW)
    stuck = asyncio.Event().wait
    probe = asyncio.create_task(world.breaker.call(stuck))
    for _ in range(5):
        await asyncio.sleep(0)
    probe.cancel()
    world.error = None
    assert await world.call() == "well"
