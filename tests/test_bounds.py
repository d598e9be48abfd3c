"""What bounds a run, divided among processes that come and go: never more than all of it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkfetch.bounds import LEASE_S, Bounds, Lease, LentRetries, Share, Tenant, Wish
from bulkfetch.errors import EngineError
from bulkfetch.retry import FIRST_RETRIES, RETRIES_PER_SUCCESS
from bulkfetch.settings import Settings
from bulkfetch.slots import AdaptiveSlots, Pace, Slots

MOST = Share(1024, 1024, 100_000.0, FIRST_RETRIES)


def wish(held: Share, retries: int = 0, successes: int = 0) -> Wish:
    return Wish(held, MOST, retries, successes)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.floats(0.5, 1000),
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["renew"] * 6 + ["leave", "wait"])),
        max_size=80,
    ),
)
def test_whoever_comes_and_goes_the_shares_never_add_up_to_more(
    queries: int, downloads: int, rate: float, steps: list[tuple[int, str]]
) -> None:
    clock = Clock()
    bounds = Bounds(queries, downloads, rate, clock=clock)
    held: dict[int, tuple[Share, float]] = {}
    for number, step in steps:
        if step == "renew":
            # Slow to give back: it still uses all that it had when it renews.
            before, _ = held.get(number, (Share(), 0.0))
            share = bounds.renew(number, wish(before)).share
            held[number] = share, clock.now + LEASE_S
            still = before.at_least(share)
            others = [s for n, (s, _) in held.items() if n != number]
            assert sum(s.queries for s in others) + still.queries <= queries
            assert sum(s.downloads for s in others) + still.downloads <= downloads
            assert sum(s.rate for s in others) + still.rate <= rate * (1 + 1e-9)
        elif step == "leave":
            bounds.leave(number, 0, 0)
            held.pop(number, None)
        else:
            clock.now += LEASE_S / 2
            held = {n: (s, end) for n, (s, end) in held.items() if end > clock.now}


def test_a_share_is_another_s_only_when_it_was_given_back() -> None:
    bounds = Bounds(16, 32, 10.0, clock=Clock())
    (first, _) = bounds.renew(1, wish(Share()))
    assert first[:3] == (16, 32, 10.0)
    assert bounds.renew(2, wish(Share())).share[:3] == (0, 0, 0.0)
    half = bounds.renew(1, wish(first)).share
    assert half[:3] == (8, 16, 5.0)
    assert bounds.renew(2, wish(Share())).share[:3] == (0, 0, 0.0)
    bounds.renew(1, wish(half))
    assert bounds.renew(2, wish(Share())).share[:3] == (8, 16, 5.0)


def test_the_share_of_the_dead_comes_free_when_its_lease_ends() -> None:
    clock = Clock()
    bounds = Bounds(4, 4, None, clock=clock)
    bounds.renew(1, wish(Share()))
    clock.now = LEASE_S - 1
    assert bounds.renew(2, wish(Share())).share.queries == 0
    clock.now = LEASE_S + 1
    assert bounds.renew(2, wish(Share())).share[:3] == (4, 4, 0.0)


def test_retries_are_the_run_s_and_those_of_the_dead_count() -> None:
    clock = Clock()
    bounds = Bounds(4, 4, None, clock=clock)
    assert bounds.renew(1, wish(Share())).share.retries == FIRST_RETRIES
    assert bounds.renew(1, wish(Share(), FIRST_RETRIES, 0)).share.retries == 0
    clock.now = LEASE_S + 1
    assert bounds.renew(2, wish(Share())) == Lease(Share(4, 4, 0.0, 0), FIRST_RETRIES)
    assert bounds.renew(2, wish(Share(), 0, 2)).share.retries == 2 * RETRIES_PER_SUCCESS
    bounds.leave(2, 5, 2)
    assert bounds.count() == FIRST_RETRIES + 5


async def test_a_tenant_that_cannot_renew_says_so_before_its_share_is_another_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bulkfetch.bounds.LEASE_S", 0.2)
    answers = iter([Lease(Share(3, 5, 0.0, 7), 0)])

    async def renew(_: Wish) -> Lease:
        for lease in answers:
            return lease
        await asyncio.Event().wait()
        raise AssertionError

    queries, downloads, retries = AdaptiveSlots(16), Slots(32), LentRetries()
    tenant = Tenant(
        Settings(out="x"),
        renew,
        queries=queries,
        pace=Pace(None),
        retries=retries,
        downloads=downloads,
    )
    assert queries.limit == downloads.limit == 0
    with pytest.raises(EngineError):
        await tenant.keep()
    assert (queries.limit, downloads.limit, retries.left) == (3, 5, 7)


async def test_fewer_slots_are_waited_for_and_more_are_taken() -> None:
    slots = Slots(2)
    await slots.acquire()
    await slots.acquire()
    slots.resize(1)
    waiting = asyncio.create_task(slots.acquire())
    slots.release()
    await asyncio.sleep(0)
    assert not waiting.done()
    slots.release()
    await waiting
    others = [asyncio.create_task(slots.acquire()) for _ in range(3)]
    others[0].cancel()
    await asyncio.sleep(0)
    slots.resize(3)
    await asyncio.gather(*others[1:])
    assert slots.taken == 3


async def test_slots_kept_back_stay_so_when_the_bound_changes() -> None:
    slots = AdaptiveSlots(8)
    async with slots.take() as taken:
        slots.throttled(taken)
    slots.resize(4)
    assert (slots.bound, slots.limit) == (4, 2)
    slots.resize(0)
    slots.resize(8)
    assert slots.limit == 8


async def test_a_pace_that_changes_is_that_of_whoever_waits() -> None:
    pace = Pace(0)
    waiting = asyncio.create_task(pace.turn())
    await asyncio.sleep(0)
    assert not waiting.done()
    pace.change(1000.0)
    await asyncio.wait_for(waiting, 60)
