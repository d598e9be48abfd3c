"""Processes that read for this one: none outlives it, and none is waited for in vain."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Where this one fails or is interrupted, wait for nothing that the others are at."""
    others = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise


def end_with_the_first() -> None:
    """Leave it to the first process to be interrupted, and end when it has died."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_after_the_first, daemon=True).start()


def _end_after_the_first() -> None:
    if first := multiprocessing.parent_process():
        first.join()
        os._exit(1)
