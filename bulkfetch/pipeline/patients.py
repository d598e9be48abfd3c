"""The patients that one process has in hand.

Each is one task, each of its images another inside it, so that a patient's end is simply the end of
its task. Three semaphores bound what is under way: patients in hand, API requests (in `transport`)
and downloads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from bulkfetch.api import API
from bulkfetch.archive import OpenArchive
from bulkfetch.breaker import Breaker
from bulkfetch.errors import (
    BadResponseError,
    BulkfetchError,
    ConnectionFailedError,
    FetchError,
    StatusError,
    TimedOutError,
    UnreachableError,
)
from bulkfetch.fetch import Downloader, without_work
from bulkfetch.journal import Failure, Recorder
from bulkfetch.logs import Event, about
from bulkfetch.measures import InFlight
from bulkfetch.models import ImageOutcome, ImageRecord, ManifestRow
from bulkfetch.pipeline.elsewhere import Elsewhere
from bulkfetch.pipeline.unlisted import Inquiry
from bulkfetch.plan import Ended, Held, Item, Level, Place, levels_of, place_of, plan
from bulkfetch.retry import Retries, Retry
from bulkfetch.settings import Settings
from bulkfetch.slots import Slots
from bulkfetch.transport import Transport

# What is in flight when a run is told to end has so long to end by itself.
GRACE_S = 5.0
_LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


def seats_of(settings: Settings) -> int:
    """Return how many patients a process with these bounds may have in hand."""
    return settings.query_concurrency + settings.download_concurrency


class Services:
    """The API and the storage, as one process of a run talks to them."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        api: API,
        budget: Retries,
        *,
        is_first: bool = True,
    ) -> None:
        self.transport = transport
        self.api = api
        self._include_coverages = settings.include_coverages
        self._breakers = [
            Breaker(name, settings.max_outage, has_answered=not is_first)
            for name in ("the API", "the storage", "the destination")
        ]
        self._query_again, self.fetch_again, self.keep_again = (
            Retry(settings.retries, budget, breaker, noted=transport.measures.retries)
            for breaker in self._breakers
        )

    @property
    def kept_back(self) -> int:
        """How many queries fewer may be in flight, since the API says that it is too much."""
        return self.transport.query_slots.bound - self.transport.query_slots.limit

    @property
    def outage(self) -> str | None:
        """What to tell a person while one of them is left alone; None when all is well."""
        return next((breaker.state for breaker in self._breakers if breaker.state), None)

    async def image(self, image_id: str) -> ImageRecord | None:
        """Return an image's record as it is now, None where it is gone.

        Raises:
            FetchError, CredentialsError: as `API.image_if_any` does, when trying again was in vain.
        """
        return await self._query_again(f"image {image_id}", self.api.image_if_any, image_id)

    async def organizations(self) -> list[str]:
        """Return the organization of some patient, as far as there is one and it is told.

        Raises:
            FetchError, CredentialsError: as `API.patients` does, when trying again was in vain.
        """
        page = await self._query_again("a patient", self.api.patients, limit=1)
        return [item.organization_id for item in page.items if item.organization_id]

    async def images_of(self, row: ManifestRow) -> list[ImageRecord]:
        """Return the images of a row's patient or coverage.

        Raises:
            FetchError, CredentialsError: as `API.images` does, when trying again was in vain.
        """
        api, retry = self.api, self._query_again
        records = await retry(
            row.label, api.images, patient_id=row.patient_id, coverage_id=row.coverage_id
        )
        if self._include_coverages and row.patient_id and not row.coverage_id:
            for coverage in await retry(row.label, api.coverages, row.patient_id):
                records += await retry(row.label, api.images, coverage_id=coverage.id)
        # The same image may be tied to the patient and to a coverage.
        return list({(record.id, record.version): record for record in records}.values())

    async def first_answer(self, row: ManifestRow) -> list[ImageRecord] | FetchError:
        """Ask the first question before anything is made: it tells whether the API is there.

        Returns the row's images, or why there are none where that is this row's alone.

        Raises:
            CredentialsError: as `API.images` does.
            UnreachableError: every other row would fail as well.
        """
        try:
            return await self.images_of(row)
        except FetchError as error:
            if not _is_of_the_host(error):
                return error
            advice = "check the network, --environment and --api-url"
            if isinstance(error, StatusError) and error.status == HTTPStatus.FORBIDDEN:
                advice = "may these credentials read images? If so, " + advice
            raise UnreachableError(f"{error}: {advice}; nothing was fetched") from error


class Patients:
    """Patients in hand, each from its query to its end; a context, left when all have ended.

    `ended` is told how each patient failed, or None; `fail` what ends the run.

    Attributes:
        download_slots: how many images may be fetched at once.
    """

    def __init__(
        self,
        settings: Settings,
        services: Services,
        archive: OpenArchive,
        recorder: Recorder,
        *,
        run_id: str,
        ended: Callable[[ManifestRow, Failure | None], None],
        fail: Callable[[BulkfetchError], None],
        grace_s: float = GRACE_S,
    ) -> None:
        self._settings = settings
        self._services = services
        self._archive = archive
        self._recorder = recorder
        self._ended = ended
        self._fail = fail
        self._grace_s = grace_s
        self.download_slots = Slots(settings.download_concurrency)
        self._seats = seats_of(settings)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._group = asyncio.TaskGroup()
        self._watch: asyncio.Task[None]
        self._stopping = False
        self._download = Downloader(
            services.transport,
            services.api,
            archive,
            services.fetch_again,
            settings,
            run_id=run_id,
            planner=self._planned_anew,
            moved=recorder.moved,
            quarantined=recorder.quarantined,
        )
        self._elsewhere = Elsewhere(archive.tree)
        self._ask_after = Inquiry(
            services.image,
            services.images_of,
            services.organizations,
            archive,
            recorder,
            settings=settings,
            run_id=run_id,
        )

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._watch = asyncio.create_task(self._keep_watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, traceback)
        finally:
            self._watch.cancel()
            self._elsewhere.close()

    @property
    def free(self) -> int:
        """How many more patients may be begun."""
        return self._seats - len(self._tasks)

    @property
    def has_room(self) -> bool:
        """Whether another may be begun."""
        return self.free > 0

    @property
    def in_flight(self) -> InFlight:
        """What is under way."""
        queries = self._services.transport.query_slots.taken
        return InFlight(len(self._tasks), queries, self.download_slots.taken)

    def begin(self, row: ManifestRow, answer: list[ImageRecord] | FetchError | None = None) -> None:
        """Begin with a patient; `answer` is that to its query, where it was asked already."""
        self._tasks.add(self._group.create_task(self._patient(row, answer)))

    def stop(self) -> None:
        """Begin nothing new; cancel what has not ended within the grace time."""
        if not self._stopping:
            self._stopping = True
            asyncio.get_running_loop().call_later(self._grace_s, self.cancel)

    def cancel(self) -> None:
        """End at once."""
        for task in self._tasks:
            task.cancel()

    async def _keep_watch(self) -> None:
        """Let others read the journal, and look after the disk, now and then."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self._recorder.flush()
                await self._archive.check_room()
            except BulkfetchError as error:
                self._fail(error)

    async def _patient(
        self, row: ManifestRow, answer: list[ImageRecord] | FetchError | None
    ) -> None:
        ended: dict[int, Ended] = {}
        items: list[Item] = []
        error: FetchError | None = None
        reached = False
        try:
            await self._recorder.drain()
            if isinstance(answer, FetchError):
                raise answer
            records = await self._services.images_of(row) if answer is None else answer
            own = levels_of(row, self._settings.path_template)
            elsewhere: Sequence[str] = ()
            if row.patient_id is None and row.coverage_id is not None:
                elsewhere = await self._elsewhere.of(row.coverage_id)
            items, others = await self._planned(records, row, own, elsewhere)
            async with asyncio.TaskGroup() as images:
                for number, item in enumerate(items):
                    if (outcome := without_work(item)) is not None:
                        ended[number] = self._recorder.image(Ended(outcome, item))
                        continue
                    await self.download_slots.acquire()
                    if self._stopping:
                        self.download_slots.release()
                        break
                    task = images.create_task(self._image(number, item, ended))
                    task.add_done_callback(lambda _: self.download_slots.release())
            if len(ended) == len(items):
                await self._ask_after(row, others)
                reached = True
        except FetchError as failed:
            error = failed
            log.warning(
                "%s: %s",
                row.label,
                failed,
                extra=about(
                    Event.patient_failed,
                    patient_id=row.patient_id,
                    coverage_id=row.coverage_id,
                    kind=failed.kind,
                    error=str(failed),
                ),
            )
        except BulkfetchError as fatal:
            self._fail(fatal)
        finally:
            failure = self._recorder.patient(row, items, ended, error, reached=reached)
            if (this := asyncio.current_task()) is not None:
                self._tasks.discard(this)
            self._ended(row, failure)

    async def _planned_anew(self, records: Sequence[ImageRecord], row: ManifestRow) -> list[Item]:
        items, _ = await self._planned(records, row)
        return items

    async def _planned(
        self,
        records: Sequence[ImageRecord],
        row: ManifestRow,
        own: Sequence[Level] | None = None,
        elsewhere: Sequence[str] = (),
    ) -> tuple[list[Item], Mapping[Place, Held]]:
        """Decide about listed images; where it is told in which directories, of others, too."""
        for organization_id in {record.organization_id for record in records}:
            if organization_id:
                await self._archive.claim(organization_id)
        others = {r.patient.id for r in records if r.patient} - {row.patient_id}
        if row.patient_id and others:
            log.warning(
                "%s: the API lists images of patient %s: kept under that one",
                row.label,
                ", ".join(sorted(others)),
                extra=about(
                    Event.image_of_another_patient,
                    patient_id=row.patient_id,
                    coverage_id=row.coverage_id,
                    other_patient_ids=" ".join(sorted(others)),
                ),
            )
        template = self._settings.path_template
        places = [place_of(record, row, template) for record in records]
        holdings = await self._archive.look(places, own, elsewhere, rehash=self._settings.force)
        items = [
            plan(
                record,
                row,
                place,
                state,
                self._settings,
                follows_another=place in holdings.superseded,
            )
            for record, place, state in zip(records, places, holdings.held, strict=True)
        ]
        return items, holdings.others

    async def _image(self, number: int, item: Item, ended: dict[int, Ended]) -> None:
        began = time.monotonic()
        try:
            end = await self._download(item)
        except FetchError as error:
            log.warning(
                "image %s of %s: %s%s",
                item.record.id,
                item.row.label,
                error,
                "" if error.retryable else " (not tried again)",
                extra=about(
                    Event.image_failed,
                    image_id=item.record.id,
                    patient_id=item.row.patient_id,
                    coverage_id=item.row.coverage_id,
                    kind=error.kind,
                    error=str(error),
                    is_retryable=error.retryable,
                ),
            )
            end = Ended(ImageOutcome.failed, item, error=error)
        except BulkfetchError as fatal:
            self._fail(fatal)
            return
        seconds = round(time.monotonic() - began, 3)
        ended[number] = self._recorder.image(replace(end, seconds=seconds))


def _is_of_the_host(error: FetchError) -> bool:
    """Tell whether an error is about the host or the path, and so would be every patient's."""
    if isinstance(error, StatusError):
        return error.status in (403, 404, 405) or 300 <= error.status < 400
    if isinstance(error, BadResponseError):
        return error.retryable
    return isinstance(error, ConnectionFailedError | TimedOutError)
