"""How fast a run was, and how long its downloads took, over its time: in a bounded number of steps.

A run's end is not known when its journal is read from the start, so steps become longer as need be.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bulkfetch.models import moment
from bulkfetch.verification.events import ImageEvent

MOST_STEPS = 240
# Latencies are counted in classes, each this much longer than the one before: an answer is within
# some 5 % of the true one.
_CLASS = 1.1
_SHORTEST_S = 0.001


class Step(NamedTuple):
    """What ended within a step of the time: `at_s` is its begin since the run's.

    `p50_s` and `p95_s` are how long half of the downloads took at most, and all but a twentieth;
    None where none ended.
    """

    at_s: float
    images: int
    bytes: int
    failed: int
    p50_s: float | None
    p95_s: float | None


@dataclass(slots=True)
class _Counted:
    images: int = 0
    bytes: int = 0
    failed: int = 0
    classes: Counter[int] = field(default_factory=Counter)

    def add(self, other: _Counted) -> None:
        self.images += other.images
        self.bytes += other.bytes
        self.failed += other.failed
        self.classes.update(other.classes)


class Timeline:
    """The downloads of one run, as its journals tell them in any order."""

    def __init__(self) -> None:
        self._step_s = 1.0
        self._steps: defaultdict[int, _Counted] = defaultdict(_Counted)

    def note(self, event: ImageEvent) -> None:
        """Count an image that was downloaded, or failed."""
        if event.seconds is None or event.outcome not in ("downloaded", "failed"):
            return
        at_s = moment(event.at).timestamp()
        counted = _Counted()
        if event.outcome == "failed":
            counted.failed = 1
        else:
            counted.images, counted.bytes = 1, event.bytes
            counted.classes[_class_of(event.seconds)] += 1
        self._steps[int(at_s // self._step_s)].add(counted)
        while max(self._steps) - min(self._steps) >= MOST_STEPS:
            self._lengthen()

    def steps(self) -> tuple[float, list[Step]]:
        """Return how many seconds a step has, and the steps from the first to the last."""
        if not self._steps:
            return self._step_s, []
        first, last = min(self._steps), max(self._steps)
        steps = []
        for number in range(first, last + 1):
            counted = self._steps.get(number) or _Counted()
            steps.append(
                Step(
                    (number - first) * self._step_s,
                    counted.images,
                    counted.bytes,
                    counted.failed,
                    _quantile(counted.classes, 0.5),
                    _quantile(counted.classes, 0.95),
                )
            )
        return self._step_s, steps

    def _lengthen(self) -> None:
        shorter, self._steps = self._steps, defaultdict(_Counted)
        self._step_s *= 2
        for number, counted in shorter.items():
            self._steps[number // 2].add(counted)


def _class_of(seconds: float) -> int:
    return round(math.log(max(seconds, _SHORTEST_S), _CLASS))


def _quantile(classes: Mapping[int, int], share: float) -> float | None:
    left = share * sum(classes.values())
    for number in sorted(classes):
        left -= classes[number]
        if left <= 0:
            return round(_CLASS**number, 4)
    return None
