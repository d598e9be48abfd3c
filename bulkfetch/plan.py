"""What to do about an image, and where it lies: decided from what is known, touching nothing.

Names come from strangers, so they are never trusted as paths: see `safe_name`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import Enum, auto
from fnmatch import fnmatchcase

from bulkfetch.models import UPLOADED, ImageRecord, ManifestRow, Sidecar, SidecarOutcome
from bulkfetch.settings import Settings

LONGEST_NAME = 100
_LONGEST_STEM = 40
_PLAIN = re.compile(r"[a-z0-9._-]+")
_COVERAGE_PREFIX = "coverage-"

# Names that Windows keeps for devices, whatever follows their first dot:
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file. An archive may be copied there.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image lies: a directory below the archive, and the stem of its files' names."""

    directory: str
    stem: str

    def sidecar(self, revision: int) -> str:
        """The sidecar's name; revision 1 is the first."""
        return f"{self.stem}.json" if revision == 1 else f"{self.stem}.r{revision}.json"

    def file(self, extension: str) -> str:
        """The image's name."""
        return f"{self.stem}.{extension}"


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
    state already. `held` is that state. `damage` says why what is held goes to quarantine first.
    """

    record: ImageRecord
    row: ManifestRow
    place: Place
    action: Action
    revision: int = 1
    held: Sidecar | None = None
    damage: str | None = None


def safe_name(identity: str) -> str:
    """Return a file name for an ID: itself where it is harmless, else a stem and a digest.

    Harmless is what every file system keeps apart and none gives a meaning to: `[a-z0-9._-]`, at
    most 100 long, not beginning with `.`, `-` or `coverage-`, not ending in a dot, no device name.
    Anything else becomes what is harmless in it, `~` and 16 hex digits of its SHA-256, so that
    IDs which differ only in case, say, never meet. The ID itself is in the sidecar.
    """
    if (
        len(identity) <= LONGEST_NAME
        and _PLAIN.fullmatch(identity)
        and not identity.startswith((".", "-", _COVERAGE_PREFIX))
        and not identity.endswith(".")
        and not _DEVICES.match(identity)
    ):
        return identity
    stem = "".join(_PLAIN.findall(identity.lower()))[:_LONGEST_STEM].strip(".-")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if stem.startswith(_COVERAGE_PREFIX) or _DEVICES.match(stem):
        stem = ""
    return f"{stem}~{digest}"


def place_of(record: ImageRecord, row: ManifestRow) -> Place:
    """Say where an image belongs: with its own patient, whoever was asked for."""
    patient_id = record.patient.id if record.patient else row.patient_id
    if patient_id is not None:
        directory = safe_name(patient_id)
    else:
        coverage_id = record.coverage.id if record.coverage else row.coverage_id or ""
        directory = _COVERAGE_PREFIX + safe_name(coverage_id)
    return Place(directory, f"{safe_name(record.id)}.v{record.version}")


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


def plan(record: ImageRecord, row: ManifestRow, held: Held | None, settings: Settings) -> Item:
    """Decide what is to be done about one listed image, given what the archive holds of it."""
    place = place_of(record, row)
    if not is_wanted(record, settings):
        return Item(record, row, place, Action.leave_out)
    uploaded = record.status == UPLOADED
    if held is None or held.state is None or held.damage:
        action = Action.fetch if uploaded else Action.note
        return Item(record, row, place, action, damage=held.damage if held else None)
    state = held.state
    if uploaded and state.outcome is SidecarOutcome.not_uploaded:
        action = Action.fetch
    elif (state.status, state.deactivated) != (record.status, record.deactivated):
        action = Action.note
    else:
        action = Action.keep
    return Item(record, row, place, action, held.revision + 1, state)
