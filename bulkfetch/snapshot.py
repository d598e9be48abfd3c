"""How far a run is, as it writes it down once a second for others to read.

It is no part of the record of a run: it is gone when the run has ended in order, and a run whose
disk cannot take it goes on without.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from bulkfetch.archive import Archive, files
from bulkfetch.errors import DestinationError
from bulkfetch.journal import Tally
from bulkfetch.models import ImageSums, PatientSums

SNAPSHOT_NAME = "progress.json"
# A rate is that of so many seconds: short enough to follow a change, and long enough to be steady.
RATE_OVER_S = 30


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


class Snapshot(BaseModel):
    """How far a run was at a time.

    Attributes:
        at: when it was written.
        seconds: since the run began; no clock that is set changes it.
        patients: `not_reached` are those that have not ended yet.
        images: what has ended of those that are `listed`.
        rate: over the last `RATE_OVER_S` seconds; `mean_rate` over all.
        hindrance: what holds the run up, in words; None when nothing does.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    shard: str | None
    processes: int
    started_at: AwareDatetime
    at: AwareDatetime
    seconds: float = Field(ge=0, allow_inf_nan=False)
    patients: PatientSums
    images: ImageSums
    bytes: int
    retries: int
    retried_by_kind: dict[str, int] = Field(default_factory=dict)
    failed_by_kind: dict[str, int]
    in_flight: InFlight
    rate: Rate
    mean_rate: Rate
    hindrance: str | None = Field(max_length=200)

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the present rate; None where nothing has ended of late."""
        if not self.rate.patients_per_s:
            return None
        return round(self.patients.not_reached / self.rate.patients_per_s, 1)


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


class SnapshotFile:
    """Where a run writes how far it is, about once a second."""

    def __init__(
        self,
        archive: Archive,
        run_id: str,
        *,
        shard: str | None,
        processes: int,
        started_at: datetime,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._archive = archive
        self._run_id = run_id
        self._shard = shard
        self._processes = processes
        self._started_at = started_at
        self._clock = clock
        self._first = _Sample(clock(), 0, 0, 0)
        self._samples = deque([self._first])

    async def write(self, tally: Tally, in_flight: InFlight, retries: int) -> None:
        """Write how far the run is, in a thread; where the disk is full, do nothing."""
        text = self._take(tally, in_flight, retries).model_dump_json()
        with suppress(DestinationError):
            # To its end, so that none is written when the run has ended.
            writing = asyncio.to_thread(self._archive.write, SNAPSHOT_NAME, text, durable=False)
            await files.to_its_end(asyncio.ensure_future(writing))

    def remove(self) -> None:
        """Remove it: now the summary tells."""
        self._archive.remove(SNAPSHOT_NAME)

    def _take(self, tally: Tally, in_flight: InFlight, retries: int) -> Snapshot:
        now = _Sample(self._clock(), tally.done, tally.images.total(), tally.bytes)
        while self._samples[0].at_s < now.at_s - RATE_OVER_S and len(self._samples) > 1:
            self._samples.popleft()
        rate = now.rate_since(self._samples[0])
        self._samples.append(now)
        return Snapshot(
            run_id=self._run_id,
            shard=self._shard,
            processes=self._processes,
            started_at=self._started_at,
            at=datetime.now(UTC),
            seconds=round(now.at_s - self._first.at_s, 3),
            patients=tally.patient_sums(),
            images=tally.image_sums(),
            bytes=tally.bytes,
            retries=retries,
            retried_by_kind=dict(sorted(tally.retried.items())),
            failed_by_kind=dict(sorted(tally.kinds.items())),
            in_flight=in_flight,
            rate=rate,
            mean_rate=now.rate_since(self._first),
            hindrance=tally.hindrance,
        )
