"""Fewer requests in flight while the API says it is too much; more again when it is well."""

from __future__ import annotations

import asyncio
import itertools
import resource
import selectors

import pytest

from bulkfetch.limits import fit_to_open_files
from bulkfetch.settings import Settings
from bulkfetch.slots import AdaptiveSlots, Pace


async def in_flight_at_most(slots: AdaptiveSlots, calls: int = 50) -> int:
    """Let many requests run that all end well only in the end, and count them in flight."""
    now = most = 0

    async def one() -> None:
        nonlocal now, most
        async with slots.take():
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    await asyncio.gather(*(one() for _ in range(calls)))
    return most


async def throttle(slots: AdaptiveSlots) -> None:
    async with slots.take() as slot:
        slots.throttled(slot)


async def test_all_slots_are_given_when_all_is_well() -> None:
    slots = AdaptiveSlots(8)
    assert await in_flight_at_most(slots) == 8


async def test_each_throttling_halves_the_slots_down_to_one() -> None:
    slots = AdaptiveSlots(8)
    for limit in (4, 2, 1, 1):
        await throttle(slots)
        assert slots.limit == limit
    await in_flight_at_most(slots)
    assert await in_flight_at_most(slots) == 1


async def test_requests_that_were_in_flight_together_count_once() -> None:
    slots = AdaptiveSlots(8)
    async with slots.take() as first, slots.take() as second:
        slots.throttled(first)
        slots.throttled(second)
    assert slots.limit == 4


async def test_successes_bring_the_slots_back_one_a_round_and_never_beyond_the_bound() -> None:
    slots = AdaptiveSlots(4)
    for _ in range(3):
        await throttle(slots)
    await in_flight_at_most(slots)
    grown = []
    for _ in range(100):
        async with slots.take():
            slots.went_well()
        grown.append(slots.limit)
    assert grown[:3] == [2, 2, 2]
    assert grown[-1] == 4
    assert await in_flight_at_most(slots) == 4


async def test_a_cancelled_wait_loses_no_slot() -> None:
    slots = AdaptiveSlots(1)
    async with slots.take():
        waiting = asyncio.create_task(throttle(slots))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await in_flight_at_most(slots) == 1


def test_concurrency_is_fitted_to_the_limit_on_open_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 164))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    settings = Settings(out="x", query_concurrency=40, download_concurrency=40)
    fitted = fit_to_open_files(settings)
    assert asked == [(164, 164)]
    assert (fitted.query_concurrency, fitted.download_concurrency) == (20, 20)
    assert "164 files" in caplog.text


def test_the_limit_on_open_files_is_raised_where_that_is_enough(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 100_000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    settings = Settings(out="x")
    assert fit_to_open_files(settings) is settings
    assert len(asked) == 1
    assert not caplog.text


class LateLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only where it waits, and that wakes up late each time.

    Attributes:
        late_s: by how much.
    """

    def __init__(self, late_s: float) -> None:
        self.late_s = late_s
        self._now_s = 1000.0
        super().__init__()
        selector: selectors.BaseSelector = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def pass_the_time(timeout: float | None = None) -> object:
            if timeout:
                self._now_s += timeout + self.late_s
            return select(0)

        selector.select = pass_the_time  # type: ignore[assignment, method-assign]

    def time(self) -> float:
        return self._now_s


def turns_of(loop: LateLoop, rate: float, turns: int) -> list[float]:
    """When turns came that many were waiting for, after a long delay in the middle of them."""

    async def take() -> list[float]:
        pace, came = Pace(rate), list[float]()

        async def one(number: int) -> None:
            await pace.turn()
            came.append(loop.time())
            if number == turns // 2:
                loop._now_s += 5

        await asyncio.gather(*map(one, range(turns)))
        return came

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(take())


@pytest.mark.parametrize("late_s", [0.0, 0.005, 0.05])
def test_a_machine_that_is_always_late_has_all_turns_and_never_more_in_any_time(
    late_s: float,
) -> None:
    came = turns_of(LateLoop(late_s), rate=50, turns=1001)
    assert len(came) == 1001
    # 20 s of turns, and of the delay of 5 s a tenth of a second is caught up with.
    assert came[-1] - came[0] == pytest.approx(24.8, abs=0.2)
    for first, last in itertools.combinations(range(0, 1001, 7), 2):
        assert last - first <= 50 * (came[last] - came[first] + 0.1) + 1.001
