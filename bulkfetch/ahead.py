"""Work that a pool does ahead of whoever takes its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


def in_order(
    pool: Executor, work: Callable[[Item], T], items: Iterable[Item], at_most: int
) -> Generator[T]:
    """Yield what `work` returns for each item, in the items' order, with `at_most` given to a pool.

    Closing it, or an exception of `work`, calls off what has not begun.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= at_most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
