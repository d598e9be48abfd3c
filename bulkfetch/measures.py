"""What a process has under way, and counts of its requests; those of several can be added."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from operator import add

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_NONE = [0] * (len(BOUNDS_S) + 1)


@dataclass(frozen=True, slots=True)
class InFlight:
    """What is under way; those of several processes can be added.

    Attributes:
        patients: in hand, from their query to their end.
        queries: of the API.
        downloads: of images, from their first byte to their sidecar, waits for another try too.
    """

    patients: int = 0
    queries: int = 0
    downloads: int = 0

    def __add__(self, other: InFlight) -> InFlight:
        """Return the sums of both."""
        return InFlight(
            self.patients + other.patients,
            self.queries + other.queries,
            self.downloads + other.downloads,
        )


class Histogram:
    """How long things took.

    Attributes:
        counts: how many took at most each of `BOUNDS_S` and more than the one before; in the last
            place those that took longer than all.
        seconds: the sum of all.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = _NONE.copy()
        self.seconds = 0.0

    def __add__(self, other: Histogram) -> Histogram:
        """Return the sums of both."""
        both = Histogram()
        both.counts = list(map(add, self.counts, other.counts))
        both.seconds = self.seconds + other.seconds
        return both

    def note(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds += seconds


class Measures:
    """The requests of a process.

    Attributes:
        retries: by the kind of the error that each followed.
        throttled: answers of the API that said that it was too much (429, 503).
        queries: from sending each to the end of its answer.
        downloads: from asking storage for each file to its last byte.
    """

    __slots__ = ("downloads", "queries", "retries", "throttled")

    def __init__(self) -> None:
        self.retries: Counter[str] = Counter()
        self.throttled = 0
        self.queries = Histogram()
        self.downloads = Histogram()

    def __add__(self, other: Measures) -> Measures:
        """Return the sums of both."""
        both = Measures()
        both.retries = self.retries + other.retries
        both.throttled = self.throttled + other.throttled
        both.queries = self.queries + other.queries
        both.downloads = self.downloads + other.downloads
        return both
