"""What a run would do, patient by patient, told by one that writes nothing."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict

from bulkfetch.errors import FetchError
from bulkfetch.fetch import without_work
from bulkfetch.journal import Failure, Recorder, state_of
from bulkfetch.logs import Event, about, redact
from bulkfetch.manifest.index import private_database
from bulkfetch.models import (
    ImageOutcome,
    ImageSums,
    ManifestRow,
    PatientState,
    ToFetch,
    Unlisted,
    UnlistedSidecar,
)
from bulkfetch.outcomes import Outcome
from bulkfetch.plan import Action, Ended, Item, Place
from bulkfetch.tally import Tally

log = logging.getLogger(__name__)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Why(StrEnum):
    """Why an image would be fetched or noted.

    `new_version`: an earlier one lies in the same directory. `uploaded`: it was noted without its
    file. `changed`: its state is another at the same version.
    """

    new_image = "new_image"
    new_version = "new_version"
    uploaded = "uploaded"
    changed = "changed"
    damaged = "damaged"


class ImageForecast(_Frozen):
    """A listed image about which something would be written: its file (`fetch`), or a sidecar only.

    `size_bytes` is None where storage would have to be asked.
    """

    image_id: str
    version: int
    status: str
    fetch: bool
    why: Why
    directory: str
    size_bytes: int | None


class UnlistedForecast(_Frozen):
    """An image in the archive that is no longer listed, which would be noted."""

    image_id: str
    version: int
    became: Unlisted
    directory: str


class PatientForecast(_Frozen):
    """What a run would do about one manifest row; an image that other rows list is told once.

    `images` counts as a run's summary does: what is downloaded there would be. `kind` and `error`
    say why a row failed.
    """

    patient_id: str | None
    coverage_id: str | None
    state: PatientState
    kind: str | None
    error: str | None
    images: ImageSums
    to_do: list[ImageForecast]
    unlisted: list[UnlistedForecast]


class Forecaster(Recorder):
    """Counts what a run would do, and tells it of each patient; a context.

    What a run finds done by the time that another row lists the same is remembered on disk.
    """

    def __init__(
        self,
        tally: Tally,
        told: Callable[[PatientForecast], None],
        tell: Callable[[Sequence[Outcome]], None] | None = None,
    ) -> None:
        super().__init__(tally, None, tell=tell)
        self._told = told
        self._unlisted: dict[tuple[str | None, str | None], list[UnlistedForecast]] = {}
        self._fetched = self._sized = self._bytes = 0
        self._held = self._held_bytes = 0
        self._done: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        try:
            self._done = private_database()
            self._done.execute("CREATE TABLE done (place TEXT PRIMARY KEY) WITHOUT ROWID")
        except sqlite3.Error as error:
            self._forget(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._done is not None:
            self._done.close()

    @property
    def to_fetch(self) -> ToFetch:
        """What would be fetched, and how much that is as far as can be told."""
        unsized = self._fetched - self._sized
        estimated = None
        if not unsized:
            estimated = self._bytes
        elif self._held:
            estimated = self._bytes + round(unsized * self._held_bytes / self._held)
        return ToFetch(
            images=self._fetched,
            sized=self._sized,
            bytes=self._bytes,
            estimated_bytes=estimated,
            estimated_from=self._held,
        )

    def image(self, end: Ended) -> Ended:
        """See `Recorder.image`; what another row had done by then is left as it is."""
        item = end.item
        if _is_to_do(end) and not self._is_first(item.place):
            kept = replace(item, action=Action.keep)
            end = Ended(without_work(kept) or end.outcome, kept)
        elif end.outcome is ImageOutcome.downloaded:
            self._fetched += 1
            if item.known_bytes is not None:
                self._sized += 1
                self._bytes += item.known_bytes
        elif item.held and item.held.file:
            self._held += 1
            self._held_bytes += item.held.file.size
        return super().image(end)

    def unlisted(
        self,
        row: ManifestRow,
        place: Place,
        revision: int,
        sidecar: UnlistedSidecar,
        written: str | None,
    ) -> None:
        """See `Recorder.unlisted`; what another row had noted by then is not noted again."""
        if not self._is_first(place):
            return
        super().unlisted(row, place, revision, sidecar, written)
        self._unlisted.setdefault(row.key, []).append(
            UnlistedForecast(
                image_id=sidecar.image_id,
                version=sidecar.version,
                became=sidecar.unlisted,
                directory=place.directory,
            )
        )

    def patient(
        self,
        row: ManifestRow,
        items: Sequence[Item],
        ended: Mapping[int, Ended],
        error: FetchError | None,
        *,
        reached: bool,
    ) -> Failure | None:
        """See `Recorder.patient`; tells what would be done about it."""
        failure = super().patient(row, items, ended, error, reached=reached)
        first = failure.errors[0] if failure else None
        outcomes = Counter(end.outcome.value for end in ended.values())
        outcomes[ImageOutcome.not_reached.value] += len(items) - len(ended)
        self._told(
            PatientForecast(
                patient_id=row.patient_id,
                coverage_id=row.coverage_id,
                state=state_of(failure, items, reached=reached),
                kind=first.kind if first else None,
                error=redact(str(first)) if first else None,
                images=ImageSums(listed=len(items), **outcomes),
                to_do=[_image(end.item) for _, end in sorted(ended.items()) if _is_to_do(end)],
                unlisted=self._unlisted.pop(row.key, []),
            )
        )
        return failure

    def _is_first(self, place: Place) -> bool:
        """Tell whether nothing was to be done at a place before, and remember it."""
        if self._done is None:
            return True
        try:
            added = self._done.execute(
                "INSERT OR IGNORE INTO done VALUES (?)", (f"{place.directory}/{place.stem}",)
            )
        except sqlite3.Error as error:
            self._forget(error)
            return True
        return bool(added.rowcount)

    def _forget(self, error: sqlite3.Error) -> None:
        log.warning(
            "what would be done cannot be remembered in the temporary directory (%s): an image "
            "that several rows list is told more than once; make room there, or name another by "
            "TMPDIR",
            error,
            extra=about(Event.forecast_forgets, error=str(error)),
        )
        if self._done is not None:
            with suppress(sqlite3.Error):
                self._done.close()
            self._done = None


def _is_to_do(end: Ended) -> bool:
    return (
        end.item.action in (Action.fetch, Action.note)
        and end.outcome is not ImageOutcome.not_reached
        and end.error is None
    )


def _image(item: Item) -> ImageForecast:
    return ImageForecast(
        image_id=item.record.id,
        version=item.record.version,
        status=item.record.status,
        fetch=item.action is Action.fetch,
        why=_why(item),
        directory=item.place.directory,
        size_bytes=item.known_bytes if item.action is Action.fetch else None,
    )


def _why(item: Item) -> Why:
    if item.damage:
        return Why.damaged
    if item.held is None:
        return Why.new_version if item.follows_another else Why.new_image
    return Why.uploaded if item.action is Action.fetch else Why.changed
