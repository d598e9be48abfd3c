"""How far a run is, as it writes it down once a second for others to read.

It is no part of the record of a run: it is gone when the run has ended in order, and a run whose
disk cannot take it goes on without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from bulkfetch.archive import OpenArchive, files
from bulkfetch.errors import DestinationError
from bulkfetch.measures import InFlight
from bulkfetch.models import Filters, ImageSums, PatientSums
from bulkfetch.rates import Rate, Speed
from bulkfetch.tally import Tally

SNAPSHOT_NAME = "progress.json"
# A rate is that of so many seconds: short enough to follow a change, and long enough to be steady.
RATE_OVER_S = 30


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
    filters: Filters = Field(default_factory=dict)
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


class SnapshotFile:
    """Where a run writes how far it is, about once a second."""

    def __init__(
        self,
        archive: OpenArchive,
        run_id: str,
        *,
        shard: str | None,
        filters: Filters,
        processes: int,
        started_at: datetime,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._archive = archive
        self._run_id = run_id
        self._shard = shard
        self._filters = filters
        self._processes = processes
        self._started_at = started_at
        self._speed = Speed(RATE_OVER_S, clock)

    async def write(self, tally: Tally, retries: int) -> None:
        """Write how far the run is, in a thread; where the disk is full, do nothing."""
        text = self._take(tally, retries).model_dump_json()
        with suppress(DestinationError):
            # To its end, so that none is written when the run has ended.
            writing = asyncio.to_thread(self._archive.write, SNAPSHOT_NAME, text, durable=False)
            await files.to_its_end(asyncio.ensure_future(writing))

    def remove(self) -> None:
        """Remove it: now the summary tells."""
        self._archive.remove(SNAPSHOT_NAME)

    def _take(self, tally: Tally, retries: int) -> Snapshot:
        self._speed.note(tally.done, tally.images.total(), tally.bytes)
        return Snapshot(
            run_id=self._run_id,
            shard=self._shard,
            processes=self._processes,
            started_at=self._started_at,
            at=datetime.now(UTC),
            seconds=round(self._speed.seconds, 3),
            patients=tally.patient_sums(),
            images=tally.image_sums(),
            bytes=tally.bytes,
            retries=retries,
            retried_by_kind=dict(sorted(tally.measures.retries.items())),
            failed_by_kind=dict(sorted(tally.kinds.items())),
            filters=self._filters,
            in_flight=tally.in_flight,
            rate=self._speed.rate,
            mean_rate=self._speed.mean,
            hindrance=tally.hindrance,
        )
