"""One image: what a plan asks for, done; the signed URL's bytes staged, proved and published."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from bulkfetch._version import __version__
from bulkfetch.api import API
from bulkfetch.archive import KEPT_OVER_BYTES, OpenArchive, Stage
from bulkfetch.body import Body, continues, mark_of
from bulkfetch.errors import (
    BadBodyError,
    FetchError,
    SignedURLError,
    StatusError,
    TakenError,
    TypeMismatchError,
)
from bulkfetch.logs import Event, about
from bulkfetch.media import EXTENSIONS, is_declared, media_type_of
from bulkfetch.models import (
    UPLOADED,
    FileInfo,
    ImageOutcome,
    ImageRecord,
    ManifestRow,
    Requested,
    Sidecar,
    SidecarOutcome,
    Source,
)
from bulkfetch.plan import Action, Ended, Item, Place
from bulkfetch.retry import Retry
from bulkfetch.settings import Settings
from bulkfetch.transport import Answer, Transport, expires_at

# An image whose record changes again and again while it is fetched is left for the next run.
_MOVES_AT_MOST = 3
# Places whose plans may have been made before something ended there; the archive refuses what
# slips through.
_ENDED_AT_MOST = 1_000
# A request takes its time to be read: a URL that ends sooner than this is as good as expired.
EXPIRY_MARGIN_S = 5.0

log = logging.getLogger(__name__)

Planner = Callable[[Sequence[ImageRecord], ManifestRow], Awaitable[list[Item]]]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a sidecar says about the bytes, and, once it is written, its own SHA-256."""

    file: FileInfo
    source: Source
    sidecar: str = ""


class MovedError(FetchError):
    """The image's record changed since it was listed; `record` is how it is now."""

    kind = "moved"

    def __init__(self, record: ImageRecord) -> None:
        super().__init__("the image's record changes again and again: run once more")
        self.record = record


class Downloader:
    """Does what items ask for.

    `planner` decides anew about a record that changed meanwhile, or that another task worked on.
    `moved` is told the old and the new one; `quarantined` what is about to be moved to quarantine.
    """

    def __init__(
        self,
        transport: Transport,
        api: API,
        archive: OpenArchive,
        retry: Retry,
        settings: Settings,
        *,
        run_id: str,
        planner: Planner,
        moved: Callable[[ImageRecord, ImageRecord], None],
        quarantined: Callable[[Item], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._api = api
        self._archive = archive
        self._retry = retry
        self._settings = settings
        self._run_id = run_id
        self._planner = planner
        self._moved = moved
        self._quarantined = quarantined
        self._clock = clock
        self._trusts_expiry = True
        self._busy: dict[Place, asyncio.Event] = {}
        self._ended: dict[Place, None] = {}

    async def __call__(self, item: Item) -> Ended:
        """Do what an item asks for, following its record where that moves meanwhile.

        After a failure or cancellation nothing half-made is left on disk.

        Raises:
            FetchError: the image could not be had.
            DestinationError: the archive cannot be written.
        """
        for moves_left in reversed(range(_MOVES_AT_MOST)):
            try:
                return await self._alone(item)
            except MovedError as moved:
                if not moves_left:
                    raise
                self._moved(item.record, moved.record)
                (item,) = await self._planner([moved.record], item.row)
            except TakenError:
                if not moves_left:
                    raise
                (item,) = await self._planner([item.record], item.row)
        raise AssertionError("the last move raises")

    async def _alone(self, item: Item) -> Ended:
        """Let one task at a time work at a place, since rows may list the same, and look again."""
        place = item.place
        while (busy := self._busy.get(place)) is not None:
            await busy.wait()
        done = self._busy[place] = asyncio.Event()
        try:
            if place in self._ended:
                (item,) = await self._planner([item.record], item.row)
            return await self._perform(item)
        finally:
            del self._busy[place]
            self._ended[place] = None
            if len(self._ended) > _ENDED_AT_MOST:
                del self._ended[next(iter(self._ended))]
            done.set()

    async def _perform(self, item: Item) -> Ended:
        if (outcome := without_work(item)) is not None:
            return Ended(outcome, item)
        if self._settings.dry_run:
            wanted = item.action is Action.fetch
            return Ended(ImageOutcome.downloaded if wanted else _noted(item), item)
        if item.damage:
            log.warning(
                "image %s: %s: what is left goes to quarantine",
                item.record.id,
                item.damage,
                extra=about(
                    Event.image_damaged,
                    image_id=item.record.id,
                    version=item.record.version,
                    damage=item.damage,
                ),
            )
            await self._quarantined(item)
            await self._archive.quarantine(item.place)
        if item.action is Action.note:
            written = await self._archive.note(item.place, item.revision, self._sidecar(item, None))
            return Ended(_noted(item), item, sidecar=written)
        fetched = await self._fetch_with_retries(item)
        return Ended(ImageOutcome.downloaded, item, fetched.file.size, sidecar=fetched.sidecar)

    async def _fetch_with_retries(self, item: Item) -> Fetched:
        record = item.record
        renew = False

        async def attempt() -> Fetched:
            nonlocal record, renew
            if renew or self._is_over(record):
                now = await self._api.image(record.id)
                if (now.version, now.status) != (record.version, record.status):
                    raise MovedError(now)
                record, renew = now, False
                # A fresh one that looks old already says that a clock is wrong, perhaps ours.
                self._trusts_expiry = not self._is_over(now)
            try:
                return await self._fetch(record, item)
            except SignedURLError:
                renew = True
                raise

        return await self._retry(f"image {record.id}", attempt)

    def _is_over(self, record: ImageRecord) -> bool:
        if not self._trusts_expiry or record.signed_url is None:
            return False
        end = expires_at(record.signed_url.get_secret_value())
        return end is not None and self._clock() > end - EXPIRY_MARGIN_S

    async def _fetch(self, record: ImageRecord, item: Item) -> Fetched:
        if record.signed_url is None or not (url := record.signed_url.get_secret_value()):
            raise SignedURLError("the record has no signed URL")
        async with self._archive.stage(item.place) as stage:
            began = time.monotonic()
            answer = await self._opened(url, stage)
            try:
                body = await self._begun(answer, stage)
                async for part in answer.parts():
                    for piece in body.take(part):
                        await stage.write(piece)
            finally:
                answer.close()
            self._transport.measures.downloads.note(time.monotonic() - began)
            source = body.finish()
            media_type = media_type_of(body.head, record.file_type)
            if self._settings.strict_type and not is_declared(media_type, record.file_type):
                raise TypeMismatchError(
                    f"the bytes are {media_type}, which is not the declared type (--strict-type)"
                )
            file = FileInfo(
                path=item.place.file(EXTENSIONS.get(media_type, "bin")),
                size=body.size,
                sha256=body.sha256.hexdigest(),
                media_type=media_type,
                declared_type=record.file_type,
            )
            fetched = Fetched(file, source)
            sidecar = self._sidecar(item, fetched)
            written = await self._archive.publish(stage, file.path, item.revision, sidecar)
        return Fetched(file, source, written)

    async def _opened(self, url: str, stage: Stage) -> Answer:
        """Ask for the whole body, or for the rest of it where a part is there already."""
        kept = stage.kept
        headers = {}
        if kept is not None:
            headers = {"Range": f"bytes={kept.size}-", "If-Range": kept.mark.etag}
        try:
            return await self._transport.open_signed(url, headers=headers)
        except StatusError as error:
            if kept is not None and error.status in (412, 416):
                stage.discard()
                error.retryable = True
            raise

    async def _begun(self, answer: Answer, stage: Stage) -> Body:
        """Return the body, with what is there of it already.

        Only a 206 that starts where it was asked to, of the very same object, continues a part
        (RFC 9110, section 15.3.7).
        """
        limit = self._settings.max_file_size
        kept = stage.kept
        if answer.status != HTTPStatus.PARTIAL_CONTENT or kept is None:
            stage.begin(mark_of(answer.headers, KEPT_OVER_BYTES))
            return Body(answer, limit)
        if not continues(answer.headers, kept):
            stage.discard()
            raise BadBodyError("storage answered with another range, or of another object")
        body = Body(answer, limit, expected=kept.mark)
        async for data in stage.restore():
            for _ in body.take(data):
                pass
        return body

    def _sidecar(self, item: Item, fetched: Fetched | None) -> Sidecar:
        record, row = item.record, item.row
        kept = fetched or item.held
        file = kept.file if kept else None
        return Sidecar(
            schema_version=1,
            image_id=record.id,
            patient_id=record.patient.id if record.patient else row.patient_id,
            coverage_id=record.coverage.id if record.coverage else row.coverage_id,
            version=record.version,
            status=record.status,
            deactivated=record.deactivated,
            outcome=SidecarOutcome.downloaded if file else SidecarOutcome.not_uploaded,
            file=file,
            source=kept.source if kept else None,
            record=record.for_sidecar(),
            requested=Requested(patient_id=row.patient_id, coverage_id=row.coverage_id),
            manifest=dict(row.extra) or None,
            fetched_at=datetime.now(UTC),
            run_id=self._run_id,
            bulkfetch_version=__version__,
        )


def without_work(item: Item) -> ImageOutcome | None:
    """Return the outcome of an item that asks for nothing, None for any other."""
    if item.action is Action.leave_out:
        return ImageOutcome.filtered
    if item.action is Action.keep:
        return ImageOutcome.unchanged if item.record.status == UPLOADED else _noted(item)
    return None


def _noted(item: Item) -> ImageOutcome:
    """The outcome of an item that has a sidecar and, this time, no file to fetch."""
    held = item.held
    if held is not None and held.outcome is SidecarOutcome.downloaded:
        return ImageOutcome.unchanged
    return ImageOutcome.not_uploaded
