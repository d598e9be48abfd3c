"""The stages wired together: the only place that starts tasks.

Each patient is one task, each of its images another inside it, so that a patient's end is simply
the end of its task. Three semaphores bound what is under way: patients in hand, API requests (in
`transport`) and downloads. Rows are read as patients end, so a slow disk slows the reading of the
manifest, and memory is the same for any number of rows.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from datetime import UTC, datetime
from http import HTTPStatus

from yarl import URL

from bulkfetch._version import __version__
from bulkfetch.api import API, Tokens
from bulkfetch.archive import Identity, LocalArchive
from bulkfetch.breaker import Breaker
from bulkfetch.errors import (
    BadResponseError,
    BulkfetchError,
    ConnectionFailedError,
    FetchError,
    ManifestError,
    ServiceDownError,
    StatusError,
    TimedOutError,
    UnreachableError,
)
from bulkfetch.fetch import Downloader, Ended, without_work
from bulkfetch.journal import Journal, Recorder, Tally
from bulkfetch.limits import fit_to_open_files
from bulkfetch.manifest import Manifest, ManifestFacts
from bulkfetch.models import ImageOutcome, ImageRecord, ManifestRow, PatientState, Summary
from bulkfetch.plan import Item, place_of, plan
from bulkfetch.progress import NoProgress, Progress
from bulkfetch.retry import Budget, Retry
from bulkfetch.settings import Settings
from bulkfetch.transport import Transport, connect

GRACE_S = 5.0
_ROWS_AT_ONCE = 256
_SHOW_EVERY_S = 0.1
_LOOK_EVERY_S = 1.0
_API, _STORAGE = "the API", "the storage"

log = logging.getLogger(__name__)


class Run:
    """One run over a checked manifest; `await run()` once.

    Attributes:
        run_id: names the run's folder in the archive.
        fatal: what ended the run early, as far as it was not a signal; None otherwise.
    """

    def __init__(
        self,
        manifest: Manifest,
        facts: ManifestFacts,
        settings: Settings,
        *,
        progress: Progress | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._manifest = manifest
        self._facts = facts
        settings = self._settings = fit_to_open_files(settings)
        self._progress = progress or NoProgress()
        self._grace_s = grace_s
        self._started_at = datetime.now(UTC)
        self.run_id = f"{self._started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._tally = Tally(facts.distinct)
        self._budget = Budget()
        self._breakers = {
            service: Breaker(service, settings.max_outage) for service in (_API, _STORAGE)
        }
        self._query_again = Retry(settings.retries, self._budget, self._breakers[_API])
        self._downloads = asyncio.Semaphore(settings.download_concurrency)
        self._in_hand = asyncio.Semaphore(
            settings.query_concurrency + settings.download_concurrency
        )
        self._patients: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[Summary] | None = None
        self._working = False
        self._stopping = False
        self._signal_status: int | None = None
        self.fatal: BulkfetchError | None = None
        self._transport: Transport
        self._api: API
        self._archive: LocalArchive
        self._download: Downloader
        self._journal: Journal | None = None
        self._recorder = Recorder(self._tally, None)

    def interrupt(self, exit_status: int) -> None:
        """End the run early: the first time in order, the second time at once.

        In order means that nothing new is begun and what is in flight has the grace time to end.
        """
        if self._signal_status is not None or not self._working:
            self._cancel_patients()
            if not self._working and self._main is not None:
                self._main.cancel()
        self._signal_status = exit_status
        self._stop()

    async def __call__(self) -> Summary:
        """Do the run, and return its sums, which are in the archive by then.

        Once begun, it returns them whatever happens; `fatal` says what ended it early.

        Raises:
            ConfigurationError, CredentialsError, UnreachableError, DestinationError: before
                anything was made.
        """
        self._main = asyncio.current_task()
        settings = self._settings
        started = time.monotonic()
        credentials = settings.credentials()
        identity = Identity(
            api_host=URL(settings.api_base_url).host or "", path_template=settings.path_template
        )
        LocalArchive.check(settings.out, identity)
        async with connect(settings) as transport:
            self._transport = transport
            tokens = Tokens(transport, settings.auth_base_url, credentials)
            self._api = API(transport, settings.api_base_url, tokens)
            rows = self._manifest.rows()
            first = next(rows, None)
            answer = None if first is None else await self._first_contact(first)
            with ExitStack() as stack:
                if settings.dry_run:
                    self._archive = LocalArchive.open_read_only(settings.out, identity)
                else:
                    self._archive = stack.enter_context(
                        LocalArchive.open(
                            settings.out,
                            self.run_id,
                            identity,
                            shard=settings.shard,
                            durable=not settings.no_fsync,
                        )
                    )
                    self._journal = Journal(self._archive.run_directory, self._facts.columns)
                    self._recorder = Recorder(self._tally, self._journal)
                self._download = Downloader(
                    transport,
                    self._api,
                    self._archive,
                    Retry(settings.retries, self._budget, self._breakers[_STORAGE]),
                    settings,
                    run_id=self.run_id,
                    planner=self._planned,
                    moved=self._recorder.moved,
                )
                try:
                    self._recorder.event(
                        "run_started", run_id=self.run_id, bulkfetch_version=__version__
                    )
                    self._working = True
                    if first is not None:
                        await self._work(first, answer, rows)
                finally:
                    self._working = False
                    self._progress.close()
                    summary = self._summary(time.monotonic() - started)
                    self._close(summary)
        return summary

    async def _first_contact(self, row: ManifestRow) -> list[ImageRecord] | FetchError:
        """Ask the first question before anything is made: it tells whether the API is there."""
        try:
            return await self._query(row)
        except FetchError as error:
            if not _is_of_the_host(error):
                return error
            advice = "check the network, --environment and --api-url"
            if isinstance(error, StatusError) and error.status == HTTPStatus.FORBIDDEN:
                advice = "may these credentials read images? If so, " + advice
            raise UnreachableError(f"{error}: {advice}; nothing was fetched") from error

    async def _work(
        self,
        first: ManifestRow,
        answer: list[ImageRecord] | FetchError | None,
        rows: Iterator[ManifestRow],
    ) -> None:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            try:
                async with asyncio.TaskGroup() as patients:
                    await self._in_hand.acquire()
                    self._start(patients, first, answer)
                    try:
                        async for row in _in_batches(rows):
                            await self._in_hand.acquire()
                            if self._stopping:
                                break
                            self._start(patients, row, None)
                    except ManifestError as error:
                        self._fail(error)
            finally:
                watch.cancel()

    def _start(
        self,
        group: asyncio.TaskGroup,
        row: ManifestRow,
        answer: list[ImageRecord] | FetchError | None,
    ) -> None:
        task = group.create_task(self._patient(row, answer))
        self._patients.add(task)
        task.add_done_callback(self._patients.discard)
        task.add_done_callback(lambda _: self._in_hand.release())

    async def _watch(self) -> None:
        """Show progress; let others read the journal, and look after the disk, now and then."""
        shows_a_look = round(_LOOK_EVERY_S / _SHOW_EVERY_S)
        for turn in itertools.count():
            self._tally.hindrance = self._hindrance()
            self._progress.show(self._tally)
            await asyncio.sleep(_SHOW_EVERY_S)
            if self._journal and turn % shows_a_look == 0:
                try:
                    await self._journal.flush()
                    await self._archive.check_room()
                except BulkfetchError as error:
                    self._fail(error)

    def _hindrance(self) -> str | None:
        """What holds the run up, for the progress line."""
        for breaker in self._breakers.values():
            if breaker.state:
                return breaker.state
        slots = self._transport.query_slots
        if slots.limit < slots.bound:
            return f"throttled to {slots.limit} queries at once"
        return None

    async def _patient(
        self, row: ManifestRow, answer: list[ImageRecord] | FetchError | None
    ) -> None:
        ended: dict[int, Ended] = {}
        items: list[Item] = []
        error: FetchError | None = None
        reached = False
        try:
            if self._journal:
                await self._journal.drain()
            if isinstance(answer, FetchError):
                raise answer
            records = await self._query(row) if answer is None else answer
            items = await self._planned(records, row)
            self._tally.listed += len(items)
            async with asyncio.TaskGroup() as images:
                for number, item in enumerate(items):
                    if (outcome := without_work(item)) is not None:
                        ended[number] = self._recorder.image(Ended(outcome, item))
                        continue
                    await self._downloads.acquire()
                    if self._stopping:
                        self._downloads.release()
                        break
                    task = images.create_task(self._image(number, item, ended))
                    task.add_done_callback(lambda _: self._downloads.release())
            reached = len(ended) == len(items)
        except FetchError as failed:
            error = failed
            log.warning("%s: %s", row.label, failed)
        except BulkfetchError as fatal:
            self._fail(fatal)
        finally:
            errors = self._recorder.patient(row, items, ended, error, reached=reached)
            self._stop_if_too_bad(errors)

    async def _query(self, row: ManifestRow) -> list[ImageRecord]:
        api, retry = self._api, self._query_again
        records = await retry(
            row.label, api.images, patient_id=row.patient_id, coverage_id=row.coverage_id
        )
        if self._settings.include_coverages and row.patient_id and not row.coverage_id:
            for coverage in await retry(row.label, api.coverages, row.patient_id):
                records += await retry(row.label, api.images, coverage_id=coverage.id)
        # The same image may be tied to the patient and to a coverage.
        return list({(record.id, record.version): record for record in records}.values())

    async def _planned(self, records: Sequence[ImageRecord], row: ManifestRow) -> list[Item]:
        for organization_id in {record.organization_id for record in records}:
            if organization_id:
                await self._archive.claim(organization_id)
        others = {r.patient.id for r in records if r.patient} - {row.patient_id}
        if row.patient_id and others:
            log.warning(
                "%s: the API lists images of patient %s: kept under that one",
                row.label,
                ", ".join(sorted(others)),
            )
        template = self._settings.path_template
        places = [place_of(record, row, template) for record in records]
        held = await self._archive.held(places, rehash=self._settings.force)
        return [
            plan(record, row, place, state, self._settings)
            for record, place, state in zip(records, places, held, strict=True)
        ]

    async def _image(self, number: int, item: Item, ended: dict[int, Ended]) -> None:
        try:
            end = await self._download(item)
        except FetchError as error:
            log.warning(
                "image %s of %s: %s%s",
                item.record.id,
                item.row.label,
                error,
                "" if error.retryable else " (not tried again)",
            )
            end = Ended(ImageOutcome.failed, item, error=error)
        except BulkfetchError as fatal:
            self._fail(fatal)
            return
        ended[number] = self._recorder.image(end)

    def _stop_if_too_bad(self, errors: Sequence[FetchError]) -> None:
        limit = 1 if self._settings.fail_fast else self._settings.max_failures
        if any(isinstance(error, ServiceDownError) for error in errors) or (
            limit is not None and self._tally.patients[PatientState.failed] >= limit
        ):
            self._stop()

    def _fail(self, fatal: BulkfetchError) -> None:
        if self.fatal is None:
            self.fatal = fatal
        self._stop()

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            asyncio.get_running_loop().call_later(self._grace_s, self._cancel_patients)

    def _cancel_patients(self) -> None:
        for task in self._patients:
            task.cancel()

    def _summary(self, seconds: float) -> Summary:
        images, patients = self._tally.image_sums(), self._tally.patient_sums()
        if self.fatal is not None:
            exit_code = self.fatal.exit_status
        elif self._signal_status is not None:
            exit_code = self._signal_status
        else:
            exit_code = 1 if patients.failed or patients.not_reached else 0
        return Summary(
            run_id=self.run_id,
            started_at=self._started_at,
            finished_at=datetime.now(UTC),
            seconds=round(seconds, 3),
            interrupted=self._signal_status is not None,
            exit_code=exit_code,
            dry_run=self._settings.dry_run,
            shard=str(self._settings.shard) if self._settings.shard else None,
            patients=patients,
            images=images,
            bytes=self._tally.bytes,
            retries=self._budget.count,
            duplicate_rows=self._facts.duplicates,
            failures=self._journal.failures_path if self._journal else None,
            bulkfetch_version=__version__,
        )

    def _close(self, summary: Summary) -> None:
        self._recorder.event("run_finished", exit_code=summary.exit_code)
        if self._journal is None:
            return
        # On a full disk this fails too, and the first error is the one to tell.
        with suppress(BulkfetchError) if self.fatal else nullcontext():
            self._journal.close(durable=not self._settings.no_fsync)
            self._archive.write_private(
                f"runs/{self.run_id}/summary.json", summary.model_dump_json(indent=2)
            )


def _is_of_the_host(error: FetchError) -> bool:
    """Tell whether an error is about the host or the path, and so would be every patient's."""
    if isinstance(error, StatusError):
        return error.status in (403, 404, 405) or 300 <= error.status < 400
    if isinstance(error, BadResponseError):
        return error.retryable
    return isinstance(error, ConnectionFailedError | TimedOutError)


async def _in_batches(rows: Iterator[ManifestRow]) -> AsyncIterator[ManifestRow]:
    """Yield rows that a thread reads, some hundred at a time."""
    while batch := await asyncio.to_thread(lambda: list(itertools.islice(rows, _ROWS_AT_ONCE))):
        for row in batch:
            yield row
