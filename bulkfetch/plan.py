"""What to do about an image, and where it lies: decided from what is known, touching nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from fnmatch import fnmatchcase
from typing import NamedTuple

from pydantic import ValidationError

from bulkfetch.errors import FetchError
from bulkfetch.models import (
    UPLOADED,
    ImageOutcome,
    ImageRecord,
    ManifestRow,
    Sidecar,
    SidecarOutcome,
    Unlisted,
    UnlistedSidecar,
)
from bulkfetch.paths import COVERAGE_PREFIX, DEFAULT_TEMPLATE, parse_template, safe_name
from bulkfetch.settings import Settings

# What a directory of the path template is called where an image has no such value; no ID's safe
# name begins like this.
_NONE = "~none"
# The type is free text, which may say anything; what is no media type (RFC 6838) is no name.
_OTHER = "~other"
_MEDIA_TYPE = re.compile(
    r"(application|audio|font|image|message|model|multipart|text|video)"
    r"/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}(?=\s*(;|$))"
)


# What follows the stem in a file's name: what keeps it from another, if need be; the ending.
_OWN = re.compile(r"([0-9a-f]{6}-[0-9]+\.)?[a-z]+")
# What a row tells of its own patient's directories, it tells without a record.
_NOTHING = ImageRecord(id="-", version=0, status="-")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image lies: a path of directories below the archive, and its files' stem."""

    directory: str
    stem: str

    def sidecar(self, revision: int) -> str:
        """The sidecar's name; revision 1 is the first."""
        return f"{self.stem}.json" if revision == 1 else f"{self.stem}.r{revision}.json"

    def file(self, extension: str, apart: str = "") -> str:
        """The image's name; `apart` keeps it from another that may lie there."""
        return ".".join(filter(None, (self.stem, apart, extension)))

    def owns(self, name: str) -> bool:
        """Tell whether a file's name is one that this image may have."""
        rest = name.removeprefix(f"{self.stem}.")
        return rest != name and _OWN.fullmatch(rest) is not None

    def is_apart(self, name: str) -> bool:
        """Tell whether a name is one that `file` gives it apart from another."""
        return self.owns(name) and "-" in name.removeprefix(self.stem)


class Level(NamedTuple):
    """One directory on the way to a row's images: its name, or only what that begins with."""

    text: str
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Held:
    """What the archive holds of an image at one version.

    `state` is the sidecar of the highest `revision`. `damage` says what is wrong with it or its
    file; then `state` may be None.
    """

    state: Sidecar | None
    revision: int
    damage: str | None = None


class Action(Enum):
    """What is to be done about a listed image."""

    fetch = auto()
    note = auto()
    keep = auto()
    leave_out = auto()


@dataclass(frozen=True, slots=True)
class Item:
    """One listed image and what is to be done about it.

    `revision` is the number of the sidecar to be written: 1, or the next one where there is a
    state already. `held` is that state. `damage` says why what is held goes to quarantine first;
    `known_bytes` is then the size of what is to be fetched anew, if its sidecar can be read.
    `follows_another` where an earlier version lies in the same directory.
    """

    record: ImageRecord
    row: ManifestRow
    place: Place
    action: Action
    revision: int = 1
    held: Sidecar | None = None
    damage: str | None = None
    known_bytes: int | None = None
    follows_another: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How one image ended; `item` is as it was in the end.

    `sidecar` is the SHA-256 of the sidecar that was written, in hex; None where none was. `seconds`
    is how long it took, waits for another try too; None where nothing was to be done.
    """

    outcome: ImageOutcome
    item: Item
    size_bytes: int = 0
    sidecar: str | None = None
    error: FetchError | None = None
    seconds: float | None = None


def place_of(record: ImageRecord, row: ManifestRow, path_template: str = DEFAULT_TEMPLATE) -> Place:
    """Say where an image belongs: with its own patient, whoever was asked for."""
    directory = "/".join(
        f"{text}{_FIELDS[field](record, row)}" if field else text
        for text, field in parse_template(path_template)
    )
    return Place(directory, f"{safe_name(record.id)}.v{record.version}")


def levels_of(row: ManifestRow, path_template: str = DEFAULT_TEMPLATE) -> Sequence[Level]:
    """Say where the images of a row's own patient lie, as far as the row tells."""
    return [
        Level(f"{text}{_FIELDS[field](_NOTHING, row)}", is_whole=True)
        if field in ("patient_id", "patient_hash")
        else Level(text, is_whole=field is None)
        for text, field in parse_template(path_template)
    ]


def _patient(record: ImageRecord, row: ManifestRow) -> str:
    patient_id = record.patient.id if record.patient else row.patient_id
    if patient_id is not None:
        return safe_name(patient_id)
    return COVERAGE_PREFIX + _coverage(record, row)


def _patient_hash(record: ImageRecord, row: ManifestRow) -> str:
    return hashlib.sha256(_patient(record, row).encode()).hexdigest()[:2]


def _coverage(record: ImageRecord, row: ManifestRow) -> str:
    coverage_id = record.coverage.id if record.coverage else row.coverage_id
    return safe_name(coverage_id) if coverage_id else _NONE


def _organization(record: ImageRecord, row: ManifestRow) -> str:  # noqa: ARG001  one of _FIELDS
    return safe_name(record.organization_id) if record.organization_id else _NONE


def _side(record: ImageRecord, row: ManifestRow) -> str:  # noqa: ARG001  one of _FIELDS
    side = record.coverage.side if record.coverage else None
    return safe_name(side.lower()) if side else _NONE


def _image(record: ImageRecord, row: ManifestRow) -> str:  # noqa: ARG001  one of _FIELDS
    return safe_name(record.id)


def _file_type(record: ImageRecord, row: ManifestRow) -> str:  # noqa: ARG001  one of _FIELDS
    if not record.file_type:
        return _NONE
    found = _MEDIA_TYPE.match(record.file_type.strip().lower())
    return safe_name(found[0].replace("/", "_")) if found else _OTHER


def _updated_year(record: ImageRecord, row: ManifestRow) -> str:  # noqa: ARG001  one of _FIELDS
    updated = _updated(record)
    return f"{updated.year:04}" if updated else _NONE


def _updated_month(record: ImageRecord, row: ManifestRow) -> str:  # noqa: ARG001  one of _FIELDS
    updated = _updated(record)
    return f"{updated.month:02}" if updated else _NONE


def _updated(record: ImageRecord) -> datetime | None:
    """Return the time in UTC, so that it is the same however it is written."""
    try:
        return record.updated.astimezone(UTC) if record.updated else None
    except OverflowError:
        return None  # a day beyond the first or the last year


_FIELDS: dict[str, Callable[[ImageRecord, ManifestRow], str]] = {
    "patient_id": _patient,
    "patient_hash": _patient_hash,
    "coverage_id": _coverage,
    "organization_id": _organization,
    "side": _side,
    "image_id": _image,
    "file_type": _file_type,
    "updated_year": _updated_year,
    "updated_month": _updated_month,
}


def is_wanted(record: ImageRecord, settings: Settings) -> bool:
    """Tell whether an image passes the filters; what the API does not date passes `since`."""
    side = record.coverage.side if record.coverage else None
    since = settings.updated_since
    return (
        (not settings.side or (side or "").upper() in {word.upper() for word in settings.side})
        and (not settings.status or record.status.upper() in {w.upper() for w in settings.status})
        and (
            not settings.file_type
            or any(
                fnmatchcase((record.file_type or "").lower(), pattern.lower())
                for pattern in settings.file_type
            )
        )
        and (since is None or record.updated is None or record.updated >= since)
    )


def plan(
    record: ImageRecord,
    row: ManifestRow,
    place: Place,
    held: Held | None,
    settings: Settings,
    *,
    follows_another: bool = False,
) -> Item:
    """Decide what is to be done about a listed image, given what the archive holds of it."""
    if not is_wanted(record, settings):
        return Item(record, row, place, Action.leave_out)
    uploaded = record.status == UPLOADED
    if held is None:
        action = Action.fetch if uploaded else Action.note
        return Item(record, row, place, action, follows_another=follows_another)
    if held.state is None or held.damage:
        action = Action.fetch if uploaded else Action.note
        file = held.state.file if held.state else None
        known = file.size if file else None
        return Item(record, row, place, action, damage=held.damage, known_bytes=known)
    state = held.state
    if uploaded and state.outcome is SidecarOutcome.not_uploaded:
        action = Action.fetch
    elif isinstance(state, UnlistedSidecar) or (state.status, state.deactivated) != (
        record.status,
        record.deactivated,
    ):
        action = Action.note
    else:
        action = Action.keep
    return Item(record, row, place, action, held.revision + 1, state)


def is_missed(state: Sidecar, row: ManifestRow, settings: Settings) -> bool:
    """Tell whether a row's question should list an image, by the last that is known of it."""
    if isinstance(state, UnlistedSidecar) and state.unlisted is not Unlisted.not_listed:
        return False
    try:
        patient, coverage = ImageRecord.model_validate(state.record).links
    except ValidationError:
        return False
    if row.patient_id is None:
        return coverage == row.coverage_id
    was_asked = (state.requested.patient_id, state.requested.coverage_id) == row.key
    if row.coverage_id is None and patient is None:
        return was_asked and settings.include_coverages
    return row.coverage_id in (None, coverage) and (patient == row.patient_id or was_asked)


def became_of(state: Sidecar, row: ManifestRow, now: ImageRecord | None) -> Unlisted | None:
    """Say why an image is no longer listed, given its record as it is now.

    None where that cannot be told from a question that was asked in another way: the image is of
    another patient, and is as it was.
    """
    if now is None:
        return Unlisted.gone
    if now.deactivated:
        return Unlisted.deactivated
    if now.links != ImageRecord.model_validate(state.record).links:
        return Unlisted.moved
    patient, _ = now.links
    return Unlisted.not_listed if patient in (None, row.patient_id) or not row.patient_id else None
