"""Images that the archive holds and that a row's question lists no longer: what became of them.

Each is asked for by its ID, and its state noted in a further revision of its sidecar; nothing that
is there is touched.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

from bulkfetch._version import __version__
from bulkfetch.archive import OpenArchive
from bulkfetch.errors import TakenError, UnknownAccountError
from bulkfetch.journal import Recorder
from bulkfetch.logs import Event, about
from bulkfetch.models import (
    ImageRecord,
    ManifestRow,
    Requested,
    Sidecar,
    Unlisted,
    UnlistedSidecar,
)
from bulkfetch.plan import Held, Place, became_of, is_missed
from bulkfetch.settings import Settings

log = logging.getLogger(__name__)

Ask = Callable[[str], Awaitable[ImageRecord | None]]
Search = Callable[[ManifestRow], Awaitable[Sequence[ImageRecord]]]


class Inquiry:
    """Asks after images that are missed.

    `ask` returns an image's record, None where it is gone; `search` the images of a row;
    `organizations` those of some patient that the account has.
    """

    def __init__(
        self,
        ask: Ask,
        search: Search,
        organizations: Callable[[], Awaitable[Sequence[str]]],
        archive: OpenArchive,
        recorder: Recorder,
        *,
        settings: Settings,
        run_id: str,
    ) -> None:
        self._ask = ask
        self._search = search
        self._organizations = organizations
        self._archive = archive
        self._recorder = recorder
        self._settings = settings
        self._run_id = run_id

    async def __call__(self, row: ManifestRow, others: Mapping[Place, Held]) -> None:
        """Note what became of those images that the row should list, and does not.

        Raises:
            FetchError: one could not be asked for; it is as it was, and missed again next time.
            DestinationError: the archive cannot be written.
        """
        for place, held in others.items():
            state = held.state
            if state is None:
                log.warning(
                    "%s/%s: its sidecar cannot be read, and %s lists no such image: it cannot be "
                    "fetched again; restore it from a copy",
                    place.directory,
                    place.stem,
                    row.label,
                    extra=about(
                        Event.sidecar_unreadable,
                        path=f"{place.directory}/{place.stem}",
                        patient_id=row.patient_id,
                        coverage_id=row.coverage_id,
                    ),
                )
                continue
            if not is_missed(state, row, self._settings):
                continue
            now = await self._ask(state.image_id)
            await self._recognise(now)
            if (reason := became_of(state, row, now)) is None:
                continue
            if now and reason is Unlisted.not_listed and await self._is_listed(now, row):
                continue
            sidecar = self._sidecar(state, row, now, reason)
            if _tells(sidecar) != _tells(state):
                await self._note(row, place, held.revision + 1, sidecar)

    async def _recognise(self, record: ImageRecord | None) -> None:
        """See that it is the archive's own account that says what became of an image.

        Another one knows none of its images, which are not gone for that.
        """
        if record is not None and record.organization_id:
            await self._archive.claim(record.organization_id)
        if record is None and not self._archive.is_recognised:
            for organization_id in await self._organizations():
                await self._archive.claim(organization_id)
            if not self._archive.is_recognised:
                raise UnknownAccountError(
                    "the API knows nothing of an image in the archive, and no record shows that "
                    "these credentials are of the archive's organization"
                )

    async def _is_listed(self, record: ImageRecord, row: ManifestRow) -> bool:
        """Tell whether another question lists an image: its patient's, or its coverage's."""
        patient, coverage = record.links
        others = {(patient, None), (None, coverage)} - {(None, None), row.key}
        for patient_id, coverage_id in others:
            other = ManifestRow(line=row.line, patient_id=patient_id, coverage_id=coverage_id)
            if any(found.id == record.id for found in await self._search(other)):
                return True
        return False

    async def _note(
        self, row: ManifestRow, place: Place, revision: int, sidecar: UnlistedSidecar
    ) -> None:
        written = None
        if not self._settings.dry_run:
            try:
                written = await self._archive.note(place, revision, sidecar)
            except TakenError:
                return  # another row or shard missed it, too
        self._recorder.unlisted(row, place, revision, sidecar, written)

    def _sidecar(
        self, state: Sidecar, row: ManifestRow, now: ImageRecord | None, reason: Unlisted
    ) -> UnlistedSidecar:
        known = dict(state)
        if now is not None:
            patient_id, coverage_id = now.links
            known |= {
                "status": now.status,
                "deactivated": now.deactivated,
                "patient_id": patient_id,
                "coverage_id": coverage_id,
                "record": now.for_sidecar(),
            }
        known |= {
            "requested": Requested(patient_id=row.patient_id, coverage_id=row.coverage_id),
            "manifest": dict(row.extra) or None,
            "fetched_at": datetime.now(UTC),
            "run_id": self._run_id,
            "bulkfetch_version": __version__,
            "unlisted": reason,
        }
        return UnlistedSidecar(**known)


def _tells(state: Sidecar) -> tuple[object, ...]:
    """Return what makes a state another one."""
    reason = state.unlisted if isinstance(state, UnlistedSidecar) else None
    return reason, state.status, state.deactivated, state.record.get("version")
