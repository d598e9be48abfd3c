"""The record of a run: a line an event, what failed as a manifest, and the sums at the end.

Nothing here holds a name, a note or a signed URL; only a failures file carries the manifest's own
columns, since it is a manifest.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bulkfetch.archive import Growing
from bulkfetch.archive.files import named, to_its_end
from bulkfetch.chain import digest
from bulkfetch.errors import FetchError
from bulkfetch.logs import Event, about, redact, stamp
from bulkfetch.models import (
    ImageOutcome,
    ImageRecord,
    ManifestRow,
    PatientState,
    UnlistedSidecar,
    json_text,
)
from bulkfetch.outcomes import ImageEnded, Outcome, PatientEnded
from bulkfetch.plan import Action, Ended, Item, Place
from bulkfetch.tally import Tally

_FULL_BYTES = 2**16

log = logging.getLogger(__name__)


class Appender:
    """Lines on their way to the end of a file, private to its owner; made at the first line.

    Lines are gathered in memory and written by `flush`, which `add` never waits for.
    """

    def __init__(self, file: Growing) -> None:
        self._file = file
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._unwritten = b""
        self._turn = asyncio.Lock()

    def add(self, line: str) -> None:
        """Take a whole line, with its end."""
        self._add(_encoded(line))

    def _add(self, line: bytes) -> None:
        self._pending.append(line)
        self._pending_size += len(line)

    async def drain(self) -> None:
        """Wait until few lines are pending, so that they never fill the memory.

        Raises:
            DestinationError: they cannot be written.
        """
        if self._pending_size >= _FULL_BYTES:
            await self.flush()

    async def flush(self, *, durable: bool = False) -> None:
        """Write what is pending, and with `durable` wait for the disk.

        Raises:
            DestinationError: it cannot be written.
        """
        async with self._turn:
            self._take()
            with named(self._file.name):
                # To its end, so that `close` does not overtake it.
                writing = asyncio.to_thread(self._write, durable=durable)
                await to_its_end(asyncio.ensure_future(writing))

    def close(self, *, durable: bool) -> None:
        """Write what is pending, and with `durable` wait for the disk.

        Raises:
            DestinationError: it cannot be written.
        """
        self._take()
        with named(self._file.name):
            if self._unwritten:
                self._write(durable=False)
            self._file.close(durable=durable)

    def _take(self) -> None:
        self._unwritten += b"".join(self._pending)
        self._pending.clear()
        self._pending_size = 0

    def _write(self, *, durable: bool) -> None:
        while True:
            # What could not be written is still there for the next time.
            written = self._file.append(self._unwritten, durable=durable)
            self._unwritten = self._unwritten[written:]
            if not self._unwritten:
                return


class Journal(Appender):
    """What one process of a run did, line by line; each has the digest of the one before.

    Attributes:
        head: the digest of the last line. Before the first, what that is to follow: the first
            line of the run's first process, for all but that one.
    """

    def __init__(self, file: Growing, head: str | None = None) -> None:
        super().__init__(file)
        self.head = head

    def event(self, event: str, **fields: object) -> None:
        """Note that something happened; None fields are left out."""
        line: dict[str, object] = {"event": event, "at": stamp(datetime.now(UTC))}
        line.update((name, value) for name, value in fields.items() if value is not None)
        if self.head is not None:
            line["previous"] = self.head
        written = _encoded(json_text(line) + "\n")
        self.head = digest(written)
        self._add(written)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a patient failed: the errors of its query or of its images, and the IDs of those."""

    errors: Sequence[FetchError]
    images: Sequence[str]


class FailuresFile(Appender):
    """The manifest rows that failed.

    It has the manifest's own columns, so that it is a manifest of what to try again, and says in
    `bulkfetch_*` columns, which `download` ignores, what went wrong.
    """

    def __init__(self, file: Growing, columns: Sequence[str]) -> None:
        super().__init__(file)
        self._names = ("patient_id", "coverage_id", *columns)
        self._is_begun = False

    @property
    def path(self) -> str | None:
        """Where failures are named; None where nothing failed."""
        return self._file.name if self._is_begun else None

    def note(self, row: ManifestRow, failure: Failure) -> None:
        """Add a manifest row that failed."""
        own = {"patient_id": row.patient_id, "coverage_id": row.coverage_id, **row.extra}
        if not self._is_begun:
            self._is_begun = True
            told = ("bulkfetch_kind", "bulkfetch_error", "bulkfetch_images")
            self.add(_csv_line([*self._names, *told]))
        error = failure.errors[0]
        cells = [_cell(own.get(name)) for name in self._names]
        told = (error.kind, redact(str(error)), " ".join(failure.images))
        self.add(_csv_line([*cells, *told]))


class Recorder:
    """Gives every image its outcome and every patient its state: counted, and journaled if need be.

    A patient and its images are counted together, when it ends: so the sums balance at any time,
    and are the same where it was begun by a process that died.

    Nothing here awaits, so that what is cancelled gets its own, too. The sidecars of `run_id` tell
    what this run brought to the archive itself. `tell`, if anyone wants to hear of outcomes, gets
    those of a patient together, too.
    """

    def __init__(
        self,
        tally: Tally,
        journal: Journal | None,
        run_id: str | None = None,
        tell: Callable[[Sequence[Outcome]], None] | None = None,
    ) -> None:
        self._tally = tally
        self._journal = journal
        self._run_id = run_id
        self._tell = tell

    async def drain(self) -> None:
        """Wait until few lines are pending."""
        if self._journal:
            await self._journal.drain()

    async def flush(self, *, durable: bool = False) -> None:
        """Write what is pending, so that others can read it."""
        if self._journal:
            await self._journal.flush(durable=durable)

    def event(self, event: str, **fields: object) -> None:
        """Note that something happened."""
        if self._journal:
            self._journal.event(event, **fields)

    def process_died(self, how: str) -> None:
        """Note that a process of the run ended early: its journal may lack its last lines."""
        self.event("process_died", how=how)

    async def quarantined(self, item: Item) -> None:
        """Note that what is held of an image is about to be moved away, before it is."""
        self.event(
            "quarantined",
            image_id=item.record.id,
            version=item.record.version,
            directory=item.place.directory,
            damage=item.damage,
        )
        await self.flush(durable=True)

    def moved(self, old: ImageRecord, new: ImageRecord) -> None:
        """Note that an image's record changed while it was fetched."""
        log.info(
            "image %s changed while it was fetched",
            old.id,
            extra=about(
                Event.image_moved,
                image_id=old.id,
                from_version=old.version,
                to_version=new.version,
                from_status=old.status,
                to_status=new.status,
            ),
        )
        self.event(
            "image_moved",
            image_id=old.id,
            from_version=old.version,
            to_version=new.version,
            from_status=old.status,
            to_status=new.status,
        )

    def unlisted(
        self,
        row: ManifestRow,
        place: Place,
        revision: int,
        sidecar: UnlistedSidecar,
        written: str | None,
    ) -> None:
        """Note what became of an image that is no longer listed; `written` as in `Ended`."""
        self._tally.unlisted[sidecar.unlisted] += 1
        self.event(
            "unlisted",
            patient_id=row.patient_id,
            coverage_id=row.coverage_id,
            image_id=sidecar.image_id,
            version=sidecar.version,
            revision=revision,
            status=sidecar.status,
            became=sidecar.unlisted,
            directory=place.directory,
            sidecar=written,
        )

    def image(self, end: Ended) -> Ended:
        """Note how an image ended, and return that; it is counted when its patient ends."""
        record, row = end.item.record, end.item.row
        self.event(
            "image",
            patient_id=row.patient_id,
            coverage_id=row.coverage_id,
            image_id=record.id,
            version=record.version,
            status=record.status,
            outcome=end.outcome,
            directory=end.item.place.directory,
            bytes=end.size_bytes or None,
            seconds=end.seconds,
            sidecar=end.sidecar,
            revision=end.item.revision if end.sidecar and end.item.revision > 1 else None,
            **_error_fields(end.error),
        )
        return end

    def patient(
        self,
        row: ManifestRow,
        items: Sequence[Item],
        ended: Mapping[int, Ended],
        error: FetchError | None,
        *,
        reached: bool,
    ) -> Failure | None:
        """Note how a patient ended, and return how it failed, if it did.

        `ended` has the items that were reached, by their number; `error` is the query's.
        """
        ends = [
            ended.get(number) or self.image(Ended(ImageOutcome.not_reached, item))
            for number, item in enumerate(items)
        ]
        for end in ends:
            self._tally.images[end.outcome] += 1
            self._tally.bytes += end.size_bytes
            held = end.item.held
            if end.item.action is Action.keep and held is not None:
                self._tally.listed_again += held.run_id == self._run_id
        self._tally.listed += len(items)
        failed = {end.item.record.id: end.error for end in ended.values() if end.error}
        errors = [error] if error is not None else list(failed.values())
        failure = Failure(errors, list(failed)) if errors else None
        if failure:
            self._tally.kinds[errors[0].kind] += 1
        state = state_of(failure, items, reached=reached)
        self._tally.patients[state] += 1
        self.event(
            "patient",
            patient_id=row.patient_id,
            coverage_id=row.coverage_id,
            state=state,
            images=len(items),
            **_error_fields(errors[0] if errors else None),
        )
        if self._tell:
            of_patient = PatientEnded(
                patient_id=row.patient_id,
                coverage_id=row.coverage_id,
                state=state,
                images=len(items),
                **_error_fields(errors[0] if errors else None),
            )
            self._tell([*map(_image_ended, ends), of_patient])
        return failure


def state_of(failure: Failure | None, items: Sequence[Item], *, reached: bool) -> PatientState:
    """Say how a patient with these images ended; `reached` unless some were not come to."""
    if failure:
        return PatientState.failed
    if not reached:
        return PatientState.not_reached
    return PatientState.complete if items else PatientState.empty


def _image_ended(end: Ended) -> ImageEnded:
    record, row = end.item.record, end.item.row
    return ImageEnded(
        patient_id=row.patient_id,
        coverage_id=row.coverage_id,
        image_id=record.id,
        version=record.version,
        status=record.status,
        outcome=end.outcome,
        directory=end.item.place.directory,
        bytes=end.size_bytes,
        **_error_fields(end.error),
    )


def _encoded(line: str) -> bytes:
    # A lone surrogate becomes an escape, which is how JSON writes it.
    return line.encode("utf-8", "backslashreplace")


def _error_fields(error: FetchError | None) -> Mapping[str, str]:
    return {} if error is None else {"kind": error.kind, "error": redact(str(error))}


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    # It quotes the characters of the line's end that it is told, and a lone "\r" ends a line too.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"
