"""Calls that block, in threads: answered to whoever waits, and never left behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bulkfetch.archive.threads import Threads


async def test_each_task_gets_what_its_own_call_returned_or_raised() -> None:
    def call(number: int) -> int:
        if number % 3 == 0:
            raise OSError(number, "no")
        return number

    with Threads(4, "test") as threads:
        found = await asyncio.gather(
            *(threads.run(lambda n=number: call(n)) for number in range(1_000)),  # type: ignore[misc]
            return_exceptions=True,
        )
    assert all(
        isinstance(answer, OSError) and answer.errno == number if number % 3 == 0
        else answer == number
        for number, answer in enumerate(found)
    )  # fmt: skip


async def test_a_call_that_is_cancelled_is_waited_for() -> None:
    begun, may_end, is_done = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        assert may_end.wait(60)
        is_done.set()

    with Threads(1, "test") as threads:
        waiting = asyncio.create_task(threads.run(call))
        await asyncio.to_thread(begun.wait, 60)
        for _ in range(3):
            waiting.cancel()
            await asyncio.sleep(0)
        assert not waiting.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert is_done.is_set()


async def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    with Threads(8, "test") as threads:
        assert await threads.run(threading.active_count) == before + 8
    assert threading.active_count() == before


async def test_a_panic_of_compiled_code_reaches_who_waits_and_ends_no_thread() -> None:
    class PanicError(BaseException):
        pass

    def panic() -> None:
        raise PanicError

    with Threads(1, "test") as threads:
        for _ in range(2):
            with pytest.raises(PanicError):
                await asyncio.wait_for(threads.run(panic), 60)
        assert await threads.run(lambda: "well") == "well"
