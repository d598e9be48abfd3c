"""How images and patients end, for whoever wants to hear of each while a run goes on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from bulkfetch.models import ImageOutcome, PatientState

# So many may wait to be read before a run deals out no more patients.
_WAITING_AT_MOST = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEnded:
    """How one image ended, at the manifest row that lists it.

    Attributes:
        patient_id: of the row, as is `coverage_id`; the image may belong to another patient.
        status: as the API says it.
        directory: where the image lies, or would lie, in the archive.
        bytes: that were written; 0 but for `downloaded`.
        kind: a stable word for why it failed; None where it did not, as for `error`, a sentence.
    """

    patient_id: str | None
    coverage_id: str | None
    image_id: str
    version: int
    status: str
    outcome: ImageOutcome
    directory: str
    bytes: int = 0
    kind: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientEnded:
    """How one manifest row ended; its images were told before.

    Attributes:
        images: how many the API lists.
        kind: a stable word for why it failed first; None where it did not, as for `error`.
    """

    patient_id: str | None
    coverage_id: str | None
    state: PatientState
    images: int
    kind: str | None = None
    error: str | None = None


Outcome: TypeAlias = ImageEnded | PatientEnded


class Outcomes:
    """Outcomes on their way from a run to one reader, in order; iterating ends with the run.

    `tell` never waits, so that what is cancelled is told as well: it is whoever deals out patients
    that waits for `room`. So there are some hundred, and those of the patients in hand.
    """

    def __init__(self) -> None:
        self._waiting: deque[Outcome] = deque()
        self._is_over = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def tell(self, outcomes: Iterable[Outcome]) -> None:
        """Add outcomes; those that nobody is going to read are dropped."""
        if not self._is_over:
            self._waiting.extend(outcomes)
            self._news.set()
            if len(self._waiting) >= _WAITING_AT_MOST:
                self._room.clear()

    async def room(self) -> None:
        """Wait until few are waiting to be read."""
        await self._room.wait()

    def end(self) -> None:
        """Say that there are no more, or that nobody reads them."""
        self._is_over = True
        self._news.set()
        self._room.set()

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """Yield each as it is told."""
        while True:
            while self._waiting:
                outcome = self._waiting.popleft()
                if len(self._waiting) < _WAITING_AT_MOST:
                    self._room.set()
                yield outcome
            if self._is_over:
                return
            self._news.clear()
            await self._news.wait()
