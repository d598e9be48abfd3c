"""Work that a pool does ahead: in order, no more than was asked, and called off in silence."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from bulkfetch.ahead import in_order, threads_of
from bulkfetch.children import end_with_the_first, ended_at_once


def test_results_come_in_the_items_order_and_no_more_is_begun_than_asked() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01 * (item % 3))
        return item * item

    with threads_of(4, "test") as pool:
        found = in_order(pool, work, range(20), at_most=5)
        assert next(found) == 0
        assert len(begun) <= 5
        assert list(found) == [item * item for item in range(1, 20)]


def test_threads_begin_nothing_more_and_are_waited_for() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.05 if item else 0)
        ended.append(item)

    with threads_of(1, "test") as pool:
        next(in_order(pool, work, range(200), 200))
    assert len(begun) < 200
    assert ended == begun


@pytest.mark.timeout(60)
def test_processes_that_are_interrupted_end_at_once_and_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    context = multiprocessing.get_context("fork")

    def interrupted() -> None:
        with (
            ProcessPoolExecutor(2, context, end_with_the_first) as pool,
            ended_at_once(),
        ):
            next(in_order(pool, time.sleep, [0.0] + [600.0] * 20, 20))
            raise KeyboardInterrupt

    # A thread of the pool that fails is an error of this test too: pytest's own hook tells it.
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capfd.readouterr().err == ""
