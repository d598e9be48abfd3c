"""A run over a manifest: begun, dealt out to its processes, ended in order, and summed up.

Rows are read as patients end, so a slow disk slows the reading of the manifest, and memory is the
same for any number of rows.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from yarl import URL

from bulkfetch._version import __version__
from bulkfetch.api import API, Tokens
from bulkfetch.archive import Archive, Identity, LocalArchive
from bulkfetch.errors import (
    BulkfetchError,
    FetchError,
    ProcessDiedError,
    ServiceDownError,
)
from bulkfetch.forecast import Forecaster, PatientForecast
from bulkfetch.journal import Failure, Recorder, Tally
from bulkfetch.limits import fit_to_open_files, processes_for
from bulkfetch.manifest import Manifest, ManifestFacts
from bulkfetch.models import ImageRecord, ManifestRow, PatientState, Summary
from bulkfetch.pipeline.patients import GRACE_S, Patients, Services
from bulkfetch.pipeline.processes import Helper, share_of, shared_file, without_credentials
from bulkfetch.pipeline.record import Record
from bulkfetch.pipeline.wire import Order, Start
from bulkfetch.progress import NoProgress, Progress
from bulkfetch.retry import Budget
from bulkfetch.settings import Settings
from bulkfetch.snapshot import InFlight
from bulkfetch.transport import connect
from bulkfetch.words import counted

_ROWS_AT_ONCE = 256
_SHOW_EVERY_S = 0.1
_LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


class Run:
    """One run over a checked manifest; `await run()` once. A dry one calls `foreseen` for each row.

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
        foreseen: Callable[[PatientForecast], None] = lambda _: None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._manifest = manifest
        self._facts = facts
        self._settings = fit_to_open_files(settings)
        self._processes = processes_for(self._settings, facts.distinct)
        self._progress = progress or NoProgress()
        self._foreseen = foreseen
        self._grace_s = grace_s
        self._started_at = datetime.now(UTC)
        self.run_id = f"{self._started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._tally = Tally(facts.distinct)
        self._main: asyncio.Task[Summary] | None = None
        self._working = False
        self._stopping = False
        self._has_room = asyncio.Event()
        self._signal_status: int | None = None
        self.fatal: BulkfetchError | None = None
        self._budget: Budget
        self._services: Services
        self._record: Record | None = None
        self._recorder = Recorder(self._tally, None)
        self._forecaster: Forecaster | None = None
        self._here: Patients
        self._helpers: list[Helper] = []
        self._crew: list[Patients | Helper]
        # What a helper that died had not begun.
        self._returned: list[ManifestRow] = []

    def interrupt(self, exit_status: int) -> None:
        """End the run early: the first time in order, the second time at once.

        In order means that nothing new is begun and what is in flight has the grace time to end.
        """
        if self._working and self._signal_status is not None:
            self._here.cancel()
            for helper in self._helpers:
                helper.order(Order.cancel)
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
        share = share_of(settings, 1, self._processes)
        with ExitStack() as stack:
            shared = stack.enter_context(shared_file(self._processes))
            self._budget = Budget(shared, 1, self._processes)
            async with connect(share) as transport:
                tokens = Tokens(transport, settings.auth_base_url, credentials)
                api = API(transport, settings.api_base_url, tokens)
                self._services = Services(share, transport, api, self._budget)
                rows = self._manifest.rows()
                first = next(rows, None)
                answer = None if first is None else await self._services.first_answer(first)
                archive = self._open_archive(stack, identity)
                if self._record:
                    await self._record.begin()
                self._here = Patients(
                    share,
                    self._services,
                    archive,
                    self._recorder,
                    run_id=self.run_id,
                    ended=self._ended,
                    fail=self._fail,
                    grace_s=self._grace_s,
                )
                if shared is not None:
                    self._helpers = self._helpers_for(archive, identity, shared, tokens)
                self._crew = [self._here, *self._helpers]
                try:
                    self._working = True
                    if first is not None:
                        await self._work(first, answer, rows)
                finally:
                    self._working = False
                    self._progress.close()
                    summary = self._close(time.monotonic() - started)
        return summary

    def _open_archive(self, stack: ExitStack, identity: Identity) -> Archive:
        settings = self._settings
        if settings.dry_run:
            forecaster = Forecaster(self._tally, self._foreseen)
            self._recorder = self._forecaster = stack.enter_context(forecaster)
            return LocalArchive.open_read_only(settings.out, identity)
        archive = stack.enter_context(
            LocalArchive.open(
                settings.out,
                self.run_id,
                identity,
                shard=settings.shard,
                durable=not settings.no_fsync,
                is_joined=self._processes > 1,
            )
        )
        self._record = Record(
            archive,
            settings,
            self._facts,
            run_id=self.run_id,
            processes=self._processes,
            started_at=self._started_at,
        )
        self._recorder = Recorder(self._tally, self._record.journal)
        return archive

    def _helpers_for(
        self, archive: Archive, identity: Identity, shared: int, tokens: Tokens
    ) -> list[Helper]:
        if archive.writer is None or self._record is None:
            return []
        starts = (
            Start(
                settings=without_credentials(share_of(self._settings, number, self._processes)),
                run_id=self.run_id,
                identity=identity,
                writer=archive.writer,
                number=number,
                processes=self._processes,
                head=self._record.journal.head,
                budget=shared,
                log_level=logging.getLogger("bulkfetch").getEffectiveLevel(),
                grace_s=self._grace_s,
            )
            for number in range(2, self._processes + 1)
        )
        return [
            Helper(
                start,
                tokens,
                ended=self._ended,
                died=partial(self._helper_died, archive),
                fail=self._fail,
                changed=self._has_room.set,
            )
            for start in starts
        ]

    async def _work(
        self,
        first: ManifestRow,
        answer: list[ImageRecord] | FetchError | None,
        rows: Iterator[ManifestRow],
    ) -> None:
        async with asyncio.TaskGroup() as group:
            showing = group.create_task(self._show())
            try:
                async with self._here:
                    async with asyncio.TaskGroup() as helpers:
                        for helper in self._helpers:
                            helpers.create_task(helper())
                        self._here.begin(first, answer)
                        await self._deal_out(rows)
                        for helper in self._helpers:
                            helper.order(Order.finish)
                    for row in self._returned:
                        await self._deal(row)
            finally:
                showing.cancel()

    async def _deal_out(self, rows: Iterator[ManifestRow]) -> None:
        try:
            async for row in _in_batches(rows):
                if not await self._deal(row):
                    return
                if self._record:
                    await self._record.drain()
        except BulkfetchError as error:
            self._fail(error)

    async def _deal(self, row: ManifestRow) -> bool:
        """Give a row to who can begin with it soonest, or return False when the run is to stop."""
        while not self._stopping:
            if (least_busy := max(self._crew, key=lambda one: (one.has_room, one.free))).has_room:
                least_busy.begin(row)
                return True
            self._has_room.clear()
            await self._has_room.wait()
        return False

    async def _show(self) -> None:
        """Show progress, and let others read it and the failures, now and then."""
        for turn in itertools.count():
            tally = self._sums()
            tally.hindrance = self._hindrance()
            self._progress.show(tally)
            await asyncio.sleep(_SHOW_EVERY_S)
            if turn % round(_LOOK_EVERY_S / _SHOW_EVERY_S) == 0:
                await self._let_others_see(tally)

    async def _let_others_see(self, tally: Tally) -> None:
        if self._record is None:
            return
        in_flight = sum((one.in_flight for one in self._crew), InFlight())
        try:
            await self._record.let_others_see(tally, in_flight, self._budget.count)
        except BulkfetchError as error:
            self._fail(error)

    def _sums(self) -> Tally:
        return sum((helper.tally for helper in self._helpers), self._tally)

    def _hindrance(self) -> str | None:
        """What holds the run up, for the progress line."""
        processes: list[Services | Helper] = [self._services, *self._helpers]
        for process in processes:
            if process.outage:
                return process.outage
        limit = sum(process.query_limit for process in processes)
        if limit < self._settings.query_concurrency:
            return f"throttled to {counted(limit, 'query')} at once"
        return None

    def _ended(self, row: ManifestRow, failure: Failure | None) -> None:
        """See to what a patient's end means for the run, whichever process had it."""
        self._has_room.set()
        if failure is None:
            return
        if self._record:
            self._record.failed(row, failure)
        limit = 1 if self._settings.fail_fast else self._settings.max_failures
        if any(isinstance(error, ServiceDownError) for error in failure.errors) or (
            limit is not None and self._sums().patients[PatientState.failed] >= limit
        ):
            self._stop()

    def _helper_died(
        self,
        archive: Archive,
        begun: Sequence[ManifestRow],
        waiting: Sequence[ManifestRow],
        how: str,
    ) -> None:
        """See to what a process that ended early had in hand."""
        archive.process_died()
        if self._stopping:
            return
        log.error(
            "a process of this run died (%s) with %s in hand", how, counted(len(begun), "patient")
        )
        self._returned += waiting
        for row in begun:
            error = ProcessDiedError(f"the process that had it in hand died ({how})")
            self._ended(row, self._recorder.patient(row, [], {}, error, reached=False))

    def _fail(self, fatal: BulkfetchError) -> None:
        if self.fatal is None:
            self.fatal = fatal
        self._stop()

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._has_room.set()
            if self._working:
                self._here.stop()
            for helper in self._helpers:
                helper.order(Order.stop)

    def _summary(self, seconds: float) -> Summary:
        tally = self._sums()
        images, patients = tally.image_sums(), tally.patient_sums()
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
            to_fetch=self._forecaster.to_fetch if self._forecaster else None,
            shard=str(self._settings.shard) if self._settings.shard else None,
            patients=patients,
            images=images,
            bytes=tally.bytes,
            retries=self._budget.count,
            failed_by_kind=dict(sorted(tally.kinds.items())),
            unlisted=dict(tally.unlisted),
            duplicate_rows=self._facts.duplicates,
            manifest_sha256=self._manifest.sha256,
            failures=self._record.failures if self._record else None,
            bulkfetch_version=__version__,
        )

    def _close(self, seconds: float) -> Summary:
        """Finish the run's record, and return its sums."""
        summary = self._summary(seconds)
        if self._record is None:
            return summary
        # On a full disk this fails too, and the first error is the one to tell.
        return self._record.close(summary, as_far_as_can_be=self.fatal is not None)


async def _in_batches(rows: Iterator[ManifestRow]) -> AsyncIterator[ManifestRow]:
    """Yield rows that a thread reads, some hundred at a time."""
    while batch := await asyncio.to_thread(lambda: list(itertools.islice(rows, _ROWS_AT_ONCE))):
        for row in batch:
            yield row
