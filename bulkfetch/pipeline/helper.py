"""A process that sees to patients for another one: `python -m bulkfetch.pipeline.helper FD`.

`FD` is an inherited socket to the first process of the run, which reads the manifest, signs in,
writes down what failed and shows progress. When that one ends, however it ends, so does this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from contextlib import suppress

from bulkfetch import logs
from bulkfetch.api import API, LentTokens, Token
from bulkfetch.archive import LocalArchive
from bulkfetch.errors import BulkfetchError, unexpected
from bulkfetch.journal import Failure, Journal, Recorder, Tally
from bulkfetch.models import ManifestRow
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
from bulkfetch.retry import Budget
from bulkfetch.transport import connect

# Patients that end within this time are reported together.
_REPORT_EVERY_S = 0.01
_REPORT_EVERY_S_AT_LEAST = 0.5

log = logging.getLogger(__name__)


class _Helper:
    def __init__(self, channel: Channel, start: Start) -> None:
        self._channel = channel
        self._start = start
        self._tally = Tally()
        self._rows: deque[ManifestRow] = deque()
        self._ended: list[int] = []
        self._failures: list[tuple[int, Failure]] = []
        self._is_due = asyncio.Event()
        self._lent: asyncio.Future[Token] | None = None
        self._is_last = False
        self._is_over = asyncio.Event()
        self._is_done = False
        self._patients: Patients
        self._services: Services

    async def __call__(self) -> None:
        start, settings = self._start, self._start.settings
        budget = Budget(start.budget, start.number, start.processes)
        async with connect(settings) as transport:
            api = API(transport, settings.api_base_url, LentTokens(self._borrow))
            self._services = Services(settings, transport, api, budget, is_first=False)
            with LocalArchive.join(
                settings.out,
                start.run_id,
                start.identity,
                start.writer,
                start.number,
                durable=not settings.no_fsync,
            ) as archive:
                journal = Journal(archive.growing(f"journal-{start.number}.jsonl"), start.head)
                self._patients = Patients(
                    settings,
                    self._services,
                    archive,
                    Recorder(self._tally, journal),
                    run_id=start.run_id,
                    ended=self._patient_ended,
                    fail=self._fail,
                    grace_s=start.grace_s,
                )
                async with asyncio.TaskGroup() as group:
                    listening = group.create_task(self._listen())
                    reporting = group.create_task(self._report_at_times(journal))
                    async with self._patients:
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
                    self._lent.set_result(message.token)
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
            self._services.query_limit,
            self._services.outage,
            is_last,
        )
        self._ended, self._failures = [], []
        return report

    async def _borrow(self, refused: str | None, accepted: bool) -> Token:  # noqa: FBT001  as it is called
        self._lent = asyncio.get_running_loop().create_future()
        self._channel.send(Borrow(refused, accepted))
        try:
            return await self._lent
        finally:
            self._lent = None


class _ToTheFirst(logging.Handler):
    """Passes log lines on to the process that shows them."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        line = LogLine(record.name, record.levelno, logs.redact(record.getMessage()))
        # It may be a thread that has something to say.
        self._loop.call_soon_threadsafe(self._channel.send, line)


async def _help(end: socket.socket) -> int:
    channel = await Channel.open(end)
    start = await channel.receive()
    if not isinstance(start, Start):
        return 1
    logging.basicConfig(handlers=[_ToTheFirst(channel)], level=logging.WARNING)
    logging.getLogger("bulkfetch").setLevel(start.log_level)
    status = 1
    try:
        await _Helper(channel, start)()
        status = 0
    except BulkfetchError as error:
        channel.send(Fatal(error))
    except Exception as error:  # noqa: BLE001  the last resort: a traceback may hold secrets
        log.error("%s", unexpected(error))  # noqa: TRY400  the same
        await asyncio.sleep(0)  # for the line to be sent
    await channel.close()
    return status


def main() -> int:
    """Help until the first process says that it is over, or is gone; return the exit status."""
    # It is for the first process to heed them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return asyncio.run(_help(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
