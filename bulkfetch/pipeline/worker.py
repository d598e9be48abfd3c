"""What a process of a run does that is not the first, however the two are connected.

The first one reads the manifest, signs in, writes down what failed and shows progress. When it
ends, however it ends, so does this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from bulkfetch import logs
from bulkfetch.api import API, LentTokens, Token
from bulkfetch.archive import Destination
from bulkfetch.errors import BulkfetchError, unexpected
from bulkfetch.journal import Failure, Journal, Recorder
from bulkfetch.logs import Event, about
from bulkfetch.models import ManifestRow
from bulkfetch.outcomes import Outcome
from bulkfetch.pipeline.patients import Patients, Services
from bulkfetch.pipeline.wire import (
    Borrow,
    Channel,
    Fatal,
    Lent,
    LogLine,
    Order,
    Report,
    Rows,
    Start,
)
from bulkfetch.retry import Retries
from bulkfetch.tally import Tally
from bulkfetch.transport import Transport, connect

# Patients that end within this time are reported together.
_REPORT_EVERY_S = 0.01
_REPORT_EVERY_S_AT_LEAST = 0.5

log = logging.getLogger(__name__)

Lease = Callable[[Transport, Patients], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _fixed(_transport: Transport, _patients: Patients) -> AsyncIterator[None]:
    """Hold what the settings say."""
    yield


class Worker:
    """The patients of one process, as another one deals them out; `await worker()` is all of it.

    `lease` holds this process's share of what the run is bound by, while it is at work.
    """

    def __init__(
        self, channel: Channel, start: Start, retries: Retries, lease: Lease = _fixed
    ) -> None:
        self._channel = channel
        self._start = start
        self._retries = retries
        self._lease = lease
        self._tally = Tally()
        self._rows: deque[ManifestRow] = deque()
        self._ended: list[int] = []
        self._failures: list[tuple[int, Failure]] = []
        self._outcomes: list[Outcome] = []
        self._is_due = asyncio.Event()
        self._lent: asyncio.Future[Token] | None = None
        self._is_last = False
        self._is_over = asyncio.Event()
        self._is_done = False
        self._patients: Patients
        self._services: Services

    async def __call__(self) -> None:
        """See to patients until there are no more, and report what became of them.

        Raises:
            DestinationError: the archive cannot be written.
            ArchiveMismatchError: it is another account's.
            EngineError: the lease was lost.
        """
        start, settings = self._start, self._start.settings
        async with connect(settings) as transport:
            api = API(transport, settings.api_base_url, LentTokens(self._borrow))
            self._services = Services(settings, transport, api, self._retries, is_first=False)
            self._tally.measures = transport.measures
            with Destination(settings.out).join(
                start.run_id,
                start.identity,
                start.writer,
                start.number,
                self._services.keep_again,
                durable=not settings.no_fsync,
            ) as archive:
                journal = Journal(archive.growing(f"journal-{start.number}.jsonl"), start.head)
                self._patients = Patients(
                    settings,
                    self._services,
                    archive,
                    Recorder(
                        self._tally,
                        journal,
                        start.run_id,
                        self._tell if start.tells_outcomes else None,
                    ),
                    run_id=start.run_id,
                    ended=self._patient_ended,
                    fail=self._fail,
                    grace_s=start.grace_s,
                )
                async with asyncio.TaskGroup() as group:
                    listening = group.create_task(self._listen())
                    reporting = group.create_task(self._report_at_times(journal))
                    async with self._lease(transport, self._patients), self._patients:
                        await self._is_over.wait()
                    # Not cancelled, since a report may be on its way.
                    self._is_done = True
                    self._is_due.set()
                    await reporting
                    listening.cancel()
                self._channel.send(self._report())
                journal.close(durable=not settings.no_fsync)
                self._channel.send(self._report(is_last=True))

    async def _listen(self) -> None:
        while True:
            message = await self._channel.receive()
            if isinstance(message, Rows):
                self._rows.extend(message.rows)
                self._begin()
            elif isinstance(message, Lent):
                if self._lent is None or self._lent.done():
                    pass  # whoever asked was cancelled
                elif isinstance(message.token, BulkfetchError):
                    self._lent.set_exception(message.token)
                else:
                    renew_at = time.monotonic() + message.good_for_s
                    self._lent.set_result(Token(message.token, renew_at))
            elif message is Order.finish:
                self._is_last = True
                self._begin()
            elif message is Order.stop:
                self._patients.stop()
                self._end()
            elif message is Order.cancel:
                self._patients.cancel()
                self._end()
            elif message is None:
                # Whoever would hear of anything that is done from now on is gone.
                os._exit(1)

    def _begin(self) -> None:
        while self._rows and self._patients.free > 0 and not self._is_over.is_set():
            self._patients.begin(self._rows.popleft())
        if self._is_last and not self._rows:
            self._is_over.set()

    def _end(self) -> None:
        self._rows.clear()
        self._is_over.set()

    def _patient_ended(self, row: ManifestRow, failure: Failure | None) -> None:
        self._ended.append(row.line)
        if failure:
            self._failures.append((row.line, failure))
        self._begin()
        self._is_due.set()

    def _fail(self, error: BulkfetchError) -> None:
        self._channel.send(Fatal(error))
        self._patients.stop()
        self._end()

    async def _report_at_times(self, journal: Journal) -> None:
        """Report whenever there is something new; what is reported is in the journal by then."""
        while not self._is_done:
            report = self._report()
            try:
                await journal.flush()
            except BulkfetchError as error:
                self._fail(error)
            self._channel.send(report)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), _REPORT_EVERY_S_AT_LEAST)
            await asyncio.sleep(_REPORT_EVERY_S)
            self._is_due.clear()

    def _report(self, *, is_last: bool = False) -> Report:
        report = Report(
            self._ended,
            self._failures,
            self._tally + Tally(),
            self._patients.in_flight,
            self._services.kept_back,
            self._services.outage,
            self._outcomes,
            is_last,
        )
        self._ended, self._failures, self._outcomes = [], [], []
        return report

    def _tell(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes += outcomes

    async def _borrow(self, refused: str | None, accepted: bool) -> Token:  # noqa: FBT001  as it is called
        self._lent = asyncio.get_running_loop().create_future()
        self._channel.send(Borrow(refused, accepted))
        try:
            return await self._lent
        finally:
            self._lent = None


async def work(channel: Channel, start: Start, worker: Worker) -> bool:
    """Have a worker do all of its work, and return whether it did; whatever happened is told."""
    logging.basicConfig(handlers=[_ToTheFirst(channel)], level=logging.WARNING, force=True)
    logging.getLogger("bulkfetch").setLevel(start.log_level)
    try:
        await worker()
    except BulkfetchError as error:
        channel.send(Fatal(error))
    except Exception as error:  # noqa: BLE001  the last resort: a traceback may hold secrets
        log.error("%s", unexpected(error), extra=about(Event.process_failed))  # noqa: TRY400  the same
        await asyncio.sleep(0)  # for the line to be sent
    else:
        return True
    return False


class _ToTheFirst(logging.Handler):
    """Passes log lines on to the process that shows them."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        line = LogLine(
            record.name,
            record.levelno,
            logs.redact(record.getMessage()),
            logs.event_of(record),
            logs.fields_of(record),
        )
        # It may be a thread that has something to say.
        self._loop.call_soon_threadsafe(self._channel.send, line)
