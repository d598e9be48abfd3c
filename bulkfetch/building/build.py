"""A manifest made from what the API lists: all active patients, or those updated since a time."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from pydantic import BaseModel
from yarl import URL

from bulkfetch.api import API, COVERAGES_A_SCAN, PATIENTS_A_PAGE, Tokens
from bulkfetch.archive import files
from bulkfetch.breaker import Breaker
from bulkfetch.building.cursor import SEEN_AT_MOST, Cursor, Pending, Position, Trail
from bulkfetch.building.part import Kind, Part, Row, microseconds
from bulkfetch.building.scan import BEGINNING, listed, scanned
from bulkfetch.errors import ConfigurationError, StatusError
from bulkfetch.logs import Event, about, plain
from bulkfetch.manifest import ManifestFormat
from bulkfetch.manifest.forms import COVERAGE_ID, PATIENT_ID
from bulkfetch.manifest.writer import GZIP_ENDING, Cells, form_of, writing
from bulkfetch.models import Coverage, PatientPage, Versioned, moment
from bulkfetch.retry import Budget, Retry
from bulkfetch.settings import Building
from bulkfetch.transport import connect
from bulkfetch.words import counted

STANDARD_OUTPUT = "-"
# The listing is of pages by number: who is deactivated meanwhile moves another one out of sight.
LISTINGS_AT_MOST = 3
# Columns that a run ignores, so that they are in no sidecar.
_VERSION, _UPDATED_AT = "bulkfetch_version", "bulkfetch_updated_at"
_ORGANIZATION = "organization_id"

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Sofar(NamedTuple):
    """What was read so far; `total` is how many patients the API says that there are, or None."""

    patients: int
    coverages: int
    total: int | None


class Built(BaseModel):
    """What a manifest holds, and how it came about.

    `first_updated_at` and `last_updated_at` are of its rows, None where it has none of known time.
    `missing` is how many patients the API counted and did not list: 0 in a good manifest. `since`
    is where the scan began, None for a listing; `unconfirmed` says that the archive has no whole
    run on the manifest before, whose patients are in this one too. `resumed` says that an earlier
    build had begun it.
    """

    manifest: str
    patients: int
    coverages: int
    missing: int
    first_updated_at: str | None
    last_updated_at: str | None
    since: str | None
    unconfirmed: bool
    resumed: bool
    requests: int
    seconds: float


async def build_manifest(
    target: str, settings: Building, *, shown: Callable[[Sofar], object] = lambda _: None
) -> Built:
    """Make a manifest, and return what is in it; `shown` is told after each page.

    A file is replaced when the new one is whole and on the disk. Until then what was read is in
    `.<name>.building` beside it, from which the same call goes on after a failure or a kill.

    Args:
        target: the file, or "-" for standard output, to which rows go as they are read.

    Raises:
        ConfigurationError: settings, the form or the cursor cannot be; nothing was asked.
        FetchError: the API could not be asked.
        GapError: the API's lists cannot be read without a gap.
        CredentialsError: the API refused the credentials.
        DestinationError: the file, the cursor or the temporary directory cannot be written.
    """
    return await _Build(target, settings, shown)()


class _Build:
    """One build; called once."""

    def __init__(self, target: str, settings: Building, shown: Callable[[Sofar], object]) -> None:
        self._target = target
        self._settings = settings
        self._shown = shown
        self._began = time.monotonic()
        self._path = None if target == STANDARD_OUTPUT else Path(target)
        default = ManifestFormat.csv if self._path is None else None
        self._form = form_of(target, settings.manifest_format or default)
        self._columns = [
            PATIENT_ID,
            *([COVERAGE_ID] if settings.coverages else []),
            _VERSION,
            _UPDATED_AT,
        ]
        self._check()
        self._api_host = URL(settings.api_base_url).host or ""
        self._cursor: Cursor | None = None
        self._organization: str | None = None
        self._requests = 0
        self._total: int | None = None
        self._missing = 0
        self._part: Part
        self._api: API
        self._retry: Retry

    def _check(self) -> None:
        settings = self._settings
        if self._form is ManifestFormat.txt and (settings.coverages or settings.since_last):
            raise ConfigurationError(
                "a .txt manifest holds patient IDs alone: choose .csv or another form for "
                "--coverages and --since-last"
            )
        if settings.since_last and (settings.out is None or self._path is None):
            raise ConfigurationError(
                "--since-last needs --out DEST, the archive into which the manifest is downloaded, "
                "and a file for the manifest"
            )
        if settings.since and settings.since > datetime.now(UTC):
            raise ConfigurationError(
                f"--since {settings.since:%Y-%m-%dT%H:%M:%SZ} is to come: correct it, or this "
                "machine's clock"
            )
        if self._path:
            files.check_parent(self._path, "MANIFEST")
            if self._path.is_dir():
                raise ConfigurationError(f"{self._target} is a directory: name a file in it")
            if settings.since_last:
                files.check_parent(self._cursor_path, "--cursor")
        with writing(io.BytesIO(), self._form, self._columns, compress=False):
            pass  # whether the form can be written is known before anything is asked

    async def __call__(self) -> Built:
        settings = self._settings
        credentials = settings.credentials()
        begin = self._position()
        build = {
            "api": self._api_host,
            "begin": begin and begin.model_dump(mode="json"),
            "coverages": settings.coverages,
            "active_only": settings.active_only,
            # Who came after a listing was begun may be on a page that was read.
            "day": None if begin else f"{datetime.now(UTC):%Y-%m-%d}",
        }
        part = self._path and self._path.with_name(f".{self._path.name}.building")
        async with connect(settings) as transport:
            tokens = Tokens(transport, settings.auth_base_url, credentials)
            self._api = API(transport, settings.api_base_url, tokens)
            self._retry = Retry(settings.retries, Budget(), Breaker("the API", settings.max_outage))
            with Part(part, build) as self._part:
                self._organization = self._part.note(_ORGANIZATION) or (
                    self._cursor.organization_id if self._cursor else None
                )
                if begin and not self._part.is_resumed:
                    self._part.known(Kind.patient, begin.patients.seen)
                    self._part.known(Kind.coverage, begin.coverages.seen if begin.coverages else [])
                    self._part.commit()
                if self._path is None:
                    await self._to_standard_output(begin)
                else:
                    await self._to_file(self._path, begin)
                built = self._built(begin)
                self._part.remove()
        return built

    def _position(self) -> Position | None:
        """Where the scan begins; None where all are to be listed."""
        settings = self._settings
        since = settings.since and settings.since.isoformat(timespec="milliseconds")
        fresh = Trail(updated_at=(since or BEGINNING).replace("+00:00", "Z"))
        if settings.since_last and settings.out:
            self._cursor = Cursor.read(self._cursor_path, self._api_host).settled(
                Path(settings.out)
            )
            if self._cursor.confirmed:
                return self._cursor.confirmed
        elif since is None:
            return None
        return Position(patients=fresh, coverages=fresh)

    @property
    def _cursor_path(self) -> Path:
        return self._settings.cursor or Path(f"{self._target}.cursor.json")

    async def _to_standard_output(self, begin: Position | None) -> None:
        written = 0
        with writing(sys.stdout.buffer, self._form, self._columns, compress=False) as writer:
            async for _ in self._read(begin):
                rows = list(self._part.rows(written))
                writer.write(map(_cells, rows))
                written = rows[-1].seq if rows else written

    async def _to_file(self, path: Path, begin: Position | None) -> None:
        async for _ in self._read(begin):
            pass
        compress = path.name.lower().endswith(GZIP_ENDING)
        with files.named(self._target), files.whole_file(path) as file:
            with writing(file, self._form, self._columns, compress=compress) as writer:
                writer.write(map(_cells, self._part.rows()))
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if self._cursor and begin:
            pending = Pending(
                position=Position(
                    patients=self._trail(Kind.patient, begin.patients),
                    coverages=self._trail(Kind.coverage, begin.coverages),
                ),
                manifest_sha256=sha256,
                rows=self._part.count(Kind.patient) + self._part.count(Kind.coverage),
                built_at=datetime.now(UTC),
            )
            update = {"pending": pending, "organization_id": self._organization}
            self._cursor.model_copy(update=update).write(self._cursor_path)

    def _trail(self, kind: Kind, begin: Trail | None) -> Trail:
        """How far a scan has come by now: as far as before where it brought nothing."""
        came_to = self._part.note(kind.name)
        before = begin or Trail(updated_at=BEGINNING)
        if came_to is None or moment(came_to) < moment(before.updated_at):
            return before
        trail = Trail(updated_at=came_to)
        after_us = microseconds(trail.overlap_begins)
        return Trail(updated_at=came_to, seen=self._part.latest(kind, after_us, SEEN_AT_MOST))

    async def _read(self, begin: Position | None) -> AsyncIterator[None]:
        """Read all, and yield whenever a page, and the place behind it, are kept."""
        pages = self._read_listing() if begin is None else self._read_scans(begin)
        async for _ in pages:
            self._part.commit()
            self._shown(self._so_far())
            yield

    async def _read_scans(self, begin: Position) -> AsyncIterator[None]:
        async for _ in self._read_scan(Kind.patient, begin.patients):
            yield
        if self._settings.coverages:
            async for _ in self._read_scan(Kind.coverage, begin.coverages):
                yield

    async def _read_scan(self, kind: Kind, begin: Trail | None) -> AsyncIterator[None]:
        question, most, what = (
            (self._api.patients_since, PATIENTS_A_PAGE, "patients")
            if kind is Kind.patient
            else (self._api.coverages_since, COVERAGES_A_SCAN, "coverages")
        )
        first = self._part.note(kind.name) or self._since(begin)

        async def ask(since: str) -> list[Versioned]:
            return await self._ask(f"the {what} since {since}", question, since)

        async for page, place in scanned(ask, first, most, what):
            await self._add(kind, page)
            self._part.set_note(kind.name, place)
            yield

    def _since(self, begin: Trail | None) -> str:
        """Where a scan begins: what a cursor has seen last is read again."""
        if begin is None:
            return BEGINNING
        return begin.since if self._cursor and self._cursor.confirmed else begin.updated_at

    async def _read_listing(self) -> AsyncIterator[None]:
        for turn in range(LISTINGS_AT_MOST):
            if turn:
                log.warning(
                    "the API counts %s more than it listed, since they changed meanwhile: "
                    "listing them once more",
                    counted(self._missing, "patient"),
                    extra=about(Event.listing_repeated, missing=self._missing),
                )
            async for page in self._pages():
                await self._add(Kind.patient, page.items)
                self._total = page.total
                self._part.set_note(Kind.patient.name, page.next_page_token or "")
                yield
            self._missing = max(0, (self._total or 0) - self._part.count(Kind.patient))
            if not self._missing:
                return

    async def _pages(self) -> AsyncIterator[PatientPage]:
        async def ask(token: str | None) -> PatientPage:
            return await self._ask("a page of all patients", self._api.patients, token)

        token = self._part.note(Kind.patient.name) or None
        try:
            async for page in listed(ask, token):
                token = None
                yield page
        except StatusError as error:
            if token is None or error.retryable:
                raise
            log.warning(
                "the place to go on from is no longer known to the API: listing anew",
                extra=about(Event.listing_restarted),
            )
            async for page in listed(ask, None):
                yield page

    async def _add(self, kind: Kind, records: Sequence[Versioned]) -> None:
        """Note a page's records, and the coverages of those patients that make a new row."""
        new = []
        for record in records:
            self._claim(record.organization_id)
            wanted = not (record.deactivated and self._settings.active_only)
            if self._part.add(kind, record, wanted=wanted) and kind is Kind.patient:
                new.append(record.id)
        if not self._settings.coverages:
            return
        # A task a patient of the page; the transport has so many at once as it may.
        tasks = [asyncio.create_task(self._coverages(patient_id)) for patient_id in new]
        try:
            for coverages in await asyncio.gather(*tasks):
                for coverage in coverages:
                    self._part.want(Kind.coverage, coverage.id)
        finally:
            for task in tasks:
                task.cancel()

    async def _coverages(self, patient_id: str) -> list[Coverage]:
        return await self._ask(f"patient {patient_id}", self._api.coverages, patient_id)

    async def _ask(
        self, what: str, question: Callable[P, Coroutine[Any, Any, T]], *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:  # fmt: skip
        answer = await self._retry(what, question, *args, **kwargs)
        self._requests += 1
        return answer

    def _claim(self, organization_id: str | None) -> None:
        """See that all is of one organization, and of the cursor's."""
        known = self._organization
        if organization_id and known and organization_id != known:
            raise ConfigurationError(
                f"the API lists patients of organization {plain(organization_id)}, and not of "
                f"{plain(known)}: these credentials are another account's; correct them, or name "
                "another --cursor and MANIFEST"
            )
        if organization_id and not known:
            self._organization = organization_id
            self._part.set_note(_ORGANIZATION, organization_id)

    def _so_far(self) -> Sofar:
        count = self._part.count
        return Sofar(count(Kind.patient), count(Kind.coverage), self._total)

    def _built(self, begin: Position | None) -> Built:
        patients, coverages, _ = self._so_far()
        first, last = self._part.times()
        return Built(
            manifest=self._target,
            patients=patients,
            coverages=coverages,
            missing=self._missing,
            first_updated_at=first,
            last_updated_at=last,
            since=begin and self._since(begin.patients),
            unconfirmed=self._cursor is not None and self._cursor.pending is not None,
            resumed=self._part.is_resumed,
            requests=self._requests,
            seconds=round(time.monotonic() - self._began, 3),
        )


def _cells(row: Row) -> Cells:
    return {
        COVERAGE_ID if row.kind is Kind.coverage else PATIENT_ID: row.id,
        _VERSION: row.version,
        _UPDATED_AT: row.updated_at,
    }
