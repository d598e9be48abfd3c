"""How fast a run is of late, and in the mean."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Rate(BaseModel):
    """What has ended in a second, in the mean; `bytes_per_s` are those written."""

    model_config = ConfigDict(frozen=True)

    patients_per_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    images_per_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    bytes_per_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def __add__(self, other: Rate) -> Rate:
        """Return the sums of both."""
        return Rate(
            patients_per_s=self.patients_per_s + other.patients_per_s,
            images_per_s=self.images_per_s + other.images_per_s,
            bytes_per_s=self.bytes_per_s + other.bytes_per_s,
        )


class Speed:
    """A run's rates, from its sums as they are now and then.

    Attributes:
        rate: over the last `over_s` seconds.
        mean: since this was made.
        seconds: the same time.
    """

    def __init__(self, over_s: float, clock: Callable[[], float]) -> None:
        self._over_s = over_s
        self._clock = clock
        self._first = _Sample(clock(), 0, 0, 0)
        self._samples = deque([self._first])
        self.rate = self.mean = Rate()
        self.seconds = 0.0

    def note(self, patients: int, images: int, size_bytes: int) -> None:
        """Take the sums as they are now."""
        now = _Sample(self._clock(), patients, images, size_bytes)
        while self._samples[0].at_s < now.at_s - self._over_s and len(self._samples) > 1:
            self._samples.popleft()
        self.rate = now.rate_since(self._samples[0])
        self._samples.append(now)
        self.mean = now.rate_since(self._first)
        self.seconds = now.at_s - self._first.at_s


class _Sample(NamedTuple):
    at_s: float
    patients: int
    images: int
    bytes: int

    def rate_since(self, past: _Sample) -> Rate:
        seconds = self.at_s - past.at_s
        if seconds <= 0:
            return Rate()
        return Rate(
            patients_per_s=round(max(0, self.patients - past.patients) / seconds, 3),
            images_per_s=round(max(0, self.images - past.images) / seconds, 3),
            bytes_per_s=round(max(0, self.bytes - past.bytes) / seconds, 3),
        )
