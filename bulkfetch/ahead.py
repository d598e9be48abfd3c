"""Work that a pool does ahead of whoever takes its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


def in_order(
    pool: Executor, work: Callable[[Item], T], items: Iterable[Item], at_most: int
) -> Iterator[T]:
    """Yield what `work` returns for each item, in the items' order, with `at_most` given to a pool.

    What waits when it is left, or when `work` raises, is for the pool's owner to call off: a pool
    of processes that breaks while a future of it is cancelled prints a traceback of its own thread
    (CPython's issue 107219, in 3.11).
    """
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= at_most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def threads_of(count: int, name: str) -> Iterator[Executor]:
    """Threads that begin nothing any more once this ends, and are waited for."""
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
