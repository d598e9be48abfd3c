"""Thumbnails of many images, made by processes of their own: what kills one costs one thumbnail."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from bulkfetch.children import ended_at_once
from bulkfetch.report.pictures import PER_SHEET, Job, Sheet, begin, sheet_of, survives

# Sheets that wait for each process.
_AHEAD = 2


def sheets_of(out: str, jobs: Iterable[Job], processes: int) -> Iterator[tuple[list[Job], Sheet]]:
    """Yield sheets of thumbnails in the images' order, each with the images that it is of."""
    left = iter(jobs)
    with ended_at_once():
        pool = _pool(out, processes)
        try:
            waiting: deque[tuple[list[Job], Future[Sheet]]] = deque()
            while True:
                while len(waiting) < _AHEAD * processes:
                    if not (batch := list(itertools.islice(left, PER_SHEET))):
                        break
                    waiting.append((batch, _asked(pool, batch)))
                if not waiting:
                    return
                batch, future = waiting.popleft()
                try:
                    sheet = future.result()
                except BrokenProcessPool:
                    sheet = _without_what_kills(out, batch)
                    pool.shutdown(cancel_futures=True)
                    pool = _pool(out, processes)
                    waiting = deque((jobs, _asked(pool, jobs)) for jobs, _ in waiting)
                yield batch, sheet
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _asked(pool: ProcessPoolExecutor, batch: list[Job]) -> Future[Sheet]:
    try:
        return pool.submit(sheet_of, batch)
    except BrokenProcessPool as error:
        # Its process died of what it was asked for before.
        died = Future[Sheet]()
        died.set_exception(error)
        return died


def _without_what_kills(out: str, batch: Sequence[Job]) -> Sheet:
    """Make a sheet where a process died, each image first tried by itself."""
    deadly: list[Job] = []
    pool = _pool(out, 1)
    try:
        for job in batch:
            try:
                pool.submit(survives, job).result()
            except BrokenProcessPool:
                deadly.append(job)
                pool = _pool(out, 1)
        try:
            return pool.submit(sheet_of, batch, deadly).result()
        except BrokenProcessPool:
            # What kills one time and not the next: no image is decoded any more.
            return sheet_of(batch, deadly=batch)
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(out: str, processes: int) -> ProcessPoolExecutor:
    # Begun anew, since a copy of a process that has threads may hold their locks.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, begin, (out,))
