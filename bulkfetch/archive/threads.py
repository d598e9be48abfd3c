"""Calls that block, made in threads, for many tasks that wait for them.

A thread pool's futures, and a wake-up of the event loop for each of them, cost more than a call of
some milliseconds is worth (docs/performance.md). Here whatever has ended by the time that the loop
looks is answered at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from bulkfetch.archive import files
from bulkfetch.errors import DestinationError

T = TypeVar("T")


class Threads:
    """So many threads for the tasks of one event loop; a context, left when all calls have ended.

    Raises `DestinationError` where there are no more threads to be had.
    """

    def __init__(self, count: int, name: str) -> None:
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}_{number}") for number in range(count)
        ]
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._calls = SimpleQueue()
        self._ended: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_told = False

    def __enter__(self) -> Self:
        started = 0
        try:
            for thread in self._threads:
                thread.start()
                started += 1
        except RuntimeError as error:
            self._end(started)
            raise DestinationError(f"{error}: allow this user more of them (ulimit -u)") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._end(len(self._threads))

    async def run(self, call: Callable[[], T]) -> T:
        """Return what a call returns; to its end even when cancelled, as it cannot be called off.

        Raises:
            BaseException: whatever it raises.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((call, answer))
        return await files.to_its_end(answer)

    def _end(self, started: int) -> None:
        for _ in range(started):
            self._calls.put(None)
        for thread in self._threads[:started]:
            thread.join()

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, answer = given
            try:
                self._ended.append((answer, call(), None))
            except BaseException as error:  # noqa: BLE001  a panic of compiled code is no Exception
                self._ended.append((answer, None, error))
            if not self._is_told:
                self._is_told = True
                # A loop that was closed has nobody left who waits.
                with suppress(RuntimeError):
                    answer.get_loop().call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        # First, so that whatever ends from now on is told anew.
        self._is_told = False
        while self._ended:
            answer, result, error = self._ended.popleft()
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)
