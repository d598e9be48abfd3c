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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime
from functools import partial

from yarl import URL

from bulkfetch._version import __version__
from bulkfetch.api import API, Tokens
from bulkfetch.archive import Destination, Identity, OpenArchive
from bulkfetch.errors import (
    BulkfetchError,
    FetchError,
    ProcessDiedError,
    ServiceDownError,
)
from bulkfetch.forecast import Forecaster, PatientForecast
from bulkfetch.journal import Failure, Recorder
from bulkfetch.limits import fit_to_open_files
from bulkfetch.logs import Event, about
from bulkfetch.manifest import Manifest, ManifestFacts
from bulkfetch.measures import InFlight
from bulkfetch.models import ImageRecord, ManifestRow, PatientState, Summary
from bulkfetch.outcomes import Outcomes
from bulkfetch.pipeline.crew import Member, Ties, without_credentials
from bulkfetch.pipeline.dealing import Dealer, in_batches
from bulkfetch.pipeline.engines import engine_for
from bulkfetch.pipeline.patients import GRACE_S, Patients, Services
from bulkfetch.pipeline.record import Record
from bulkfetch.pipeline.showing import shown
from bulkfetch.pipeline.wire import Order, Start
from bulkfetch.progress import NoProgress, Progress
from bulkfetch.settings import Settings
from bulkfetch.tally import Tally
from bulkfetch.transport import Transport, connect
from bulkfetch.words import counted

# As Ctrl-C ends the command.
_INTERRUPTED = 130

log = logging.getLogger(__name__)


class Run:
    """One run over a checked manifest; `await run()` once. A dry one calls `foreseen` for each row.

    Whoever reads `outcomes` is to call their `end`: what waits to be read holds the run up.

    Raises `ConfigurationError` where options are of another engine than the one that is chosen.

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
        outcomes: Outcomes | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._manifest = manifest
        self._facts = facts
        self._settings = fit_to_open_files(settings)
        self._engine = engine_for(self._settings, facts.distinct)
        self._destination = Destination(settings.out)
        self._progress = progress or NoProgress()
        self._foreseen = foreseen
        self._outcomes = outcomes
        self._tell = outcomes.tell if outcomes else None
        self._grace_s = grace_s
        self._started_at = datetime.now(UTC)
        self.run_id = f"{self._started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._tally = Tally(facts.distinct)
        self._main: asyncio.Task[Summary] | None = None
        self._working = False
        self._is_over = False
        self._signal_status: int | None = None
        self.fatal: BulkfetchError | None = None
        self._services: Services
        self._record: Record | None = None
        self._recorder = Recorder(self._tally, None)
        self._forecaster: Forecaster | None = None
        self._here: Patients
        self._helpers: Sequence[Member] = []
        self._dealer = Dealer()

    def interrupt(self, exit_status: int = _INTERRUPTED) -> None:
        """End the run early: the first time in order, the second time at once.

        In order means that nothing new is begun and what is in flight has the grace time to end.
        What was told of a run that has ended stays true.
        """
        if self._is_over:
            return
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
        self._destination.check(identity)
        async with self._engine as engine, AsyncExitStack() as stack:
            stack.callback(self._progress.close)
            share = engine.share
            async with connect(share) as transport:
                tokens = Tokens(transport, settings.auth_base_url, credentials)
                api = API(transport, settings.api_base_url, tokens)
                self._services = Services(share, transport, api, engine.retries)
                self._tally.measures = transport.measures
                rows = self._manifest.rows()
                first = next(rows, None)
                answer = None
                if first is not None:
                    async with self._shown():
                        answer = await self._services.first_answer(first)
                archive = await self._open_archive(stack, identity)
                if self._record:
                    await self._record.begin()
                log.info(
                    "run %s begins: %s",
                    self.run_id,
                    counted(self._facts.distinct, "patient"),
                    extra=about(
                        Event.run_started,
                        run_id=self.run_id,
                        bulkfetch_version=__version__,
                        patients=self._facts.distinct,
                        processes=engine.processes,
                        shard=str(settings.shard) if settings.shard else None,
                        is_dry=settings.dry_run,
                    ),
                )
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
                self._helpers = self._helpers_for(archive, identity, transport, tokens)
                own = [self._here] if engine.first_takes_part else []
                self._dealer.crew = [*own, *self._helpers]
                try:
                    self._working = True
                    if first is not None:
                        await self._work(first, answer, rows)
                except asyncio.CancelledError:
                    # By the end of the program's event loop, or by a second signal.
                    self._signal_status = self._signal_status or _INTERRUPTED
                    raise
                finally:
                    self._working = False
                    self._is_over = True
                    self._progress.show(self._sums())
                    self._progress.close()
                    summary = self._close(time.monotonic() - started)
        return summary

    async def _open_archive(self, stack: AsyncExitStack, identity: Identity) -> OpenArchive:
        settings = self._settings
        if settings.dry_run:
            forecaster = Forecaster(self._tally, self._foreseen, self._tell)
            self._recorder = self._forecaster = stack.enter_context(forecaster)
            return stack.enter_context(
                self._destination.read_only(identity, self._services.keep_again)
            )
        archive = await stack.enter_async_context(
            self._destination.open(
                self.run_id,
                identity,
                self._services.keep_again,
                shard=settings.shard,
                durable=not settings.no_fsync,
                is_joined=self._engine.processes > 1,
            )
        )
        self._record = Record(
            archive,
            settings,
            self._facts,
            run_id=self.run_id,
            processes=self._engine.processes,
            started_at=self._started_at,
        )
        self._recorder = Recorder(self._tally, self._record.journal, self.run_id, self._tell)
        return archive

    def _helpers_for(
        self, archive: OpenArchive, identity: Identity, transport: Transport, tokens: Tokens
    ) -> Sequence[Member]:
        if archive.writer is None or self._record is None:
            return []
        start = Start(
            settings=without_credentials(self._settings).model_copy(
                update={"out": archive.tree.name}
            ),
            run_id=self.run_id,
            identity=identity,
            writer=archive.writer,
            number=1,
            head=self._record.journal.head,
            log_level=logging.getLogger("bulkfetch").getEffectiveLevel(),
            grace_s=self._grace_s,
            tells_outcomes=self._tell is not None,
        )
        ties = Ties(
            tokens,
            ended=self._ended,
            died=partial(self._helper_died, archive),
            fail=self._fail,
            tell=self._tell,
            changed=self._dealer.look,
        )
        return self._engine.crew(start, transport, ties)

    async def _work(
        self,
        first: ManifestRow,
        answer: list[ImageRecord] | FetchError | None,
        rows: Iterator[ManifestRow],
    ) -> None:
        async with self._shown(), self._here, asyncio.TaskGroup() as helpers:
            for helper in self._helpers:
                helpers.create_task(helper())
            if self._engine.first_takes_part:
                self._here.begin(first, answer)
            else:
                rows = itertools.chain([first], rows)
            await self._deal_out(rows)
            await self._dealer.deal_again(self._helpers)
            for helper in self._helpers:
                helper.order(Order.finish)

    async def _deal_out(self, rows: Iterator[ManifestRow]) -> None:
        try:
            async for row in in_batches(rows):
                if not await self._dealer.deal(row):
                    return
                if self._record:
                    await self._record.drain()
                if self._outcomes:
                    await self._outcomes.room()
        except BulkfetchError as error:
            self._fail(error)

    def _shown(self) -> AbstractAsyncContextManager[None]:
        return shown(self._progress, self._sums, self._let_others_see)

    async def _let_others_see(self, tally: Tally) -> None:
        if self._record:
            try:
                await self._record.let_others_see(tally, self._engine.retries.count)
            except BulkfetchError as error:
                self._fail(error)

    def _sums(self) -> Tally:
        """Return the sums of all processes, and what they have under way."""
        tally = sum((helper.tally for helper in self._helpers), self._tally)
        processes: list[Services | Member] = [self._services, *self._helpers]
        tally.in_flight = sum((one.in_flight for one in self._dealer.crew), InFlight())
        tally.kept_back = sum(process.kept_back for process in processes)
        outage = next((process.outage for process in processes if process.outage), None)
        tally.is_paused = outage is not None
        tally.hindrance = outage
        if self._signal_status is not None:
            tally.hindrance = f"interrupted: ends within {self._grace_s:.0f} s"
        elif outage is None and not self._dealer.crew:
            tally.hindrance = "waiting for the API's first answer"
        elif outage is None and tally.kept_back:
            limit = self._settings.query_concurrency - tally.kept_back
            tally.hindrance = f"throttled to {counted(limit, 'query')} at once"
        return tally

    def _ended(self, row: ManifestRow, failure: Failure | None) -> None:
        """See to what a patient's end means for the run, whichever process had it."""
        self._dealer.look()
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
        archive: OpenArchive,
        begun: Sequence[ManifestRow],
        waiting: Sequence[ManifestRow],
        how: str,
    ) -> None:
        """See to what a process that ended early had in hand."""
        archive.process_died()
        self._recorder.process_died(how)
        if self._dealer.is_stopped:
            return
        log.error(
            "a process of this run died (%s) with %s in hand",
            how,
            counted(len(begun), "patient"),
            extra=about(Event.process_died, how=how, patients=len(begun)),
        )
        for row in self._dealer.take_back(begun, waiting, self._engine.lives):
            error = ProcessDiedError(f"the process that had it in hand died ({how})")
            self._ended(row, self._recorder.patient(row, [], {}, error, reached=False))

    def _fail(self, fatal: BulkfetchError) -> None:
        if self.fatal is None:
            self.fatal = fatal
        self._stop()

    def _stop(self) -> None:
        if not self._dealer.is_stopped:
            self._dealer.stop()
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
            retries=self._engine.retries.count,
            retried_by_kind=dict(sorted(tally.measures.retries.items())),
            failed_by_kind=dict(sorted(tally.kinds.items())),
            filters=self._settings.filters,
            unlisted=dict(tally.unlisted),
            duplicate_rows=self._facts.duplicates,
            listed_again=tally.listed_again,
            manifest_sha256=self._manifest.sha256,
            failures=self._record.failures if self._record else None,
            bulkfetch_version=__version__,
        )

    def _close(self, seconds: float) -> Summary:
        """Finish the run's record, and return its sums."""
        summary = self._summary(seconds)
        log.info(
            "run %s ends with status %d after %.1f s",
            summary.run_id,
            summary.exit_code,
            summary.seconds,
            extra=about(
                Event.run_finished,
                run_id=summary.run_id,
                exit_code=summary.exit_code,
                seconds=summary.seconds,
                patients=summary.patients.model_dump(),
                images=summary.images.model_dump(),
                bytes=summary.bytes,
                retries=summary.retries,
                failed_by_kind=summary.failed_by_kind,
            ),
        )
        if self._record is None:
            return summary
        # On a full disk this fails too, and the first error is the one to tell.
        return self._record.close(summary, as_far_as_can_be=self.fatal is not None)
