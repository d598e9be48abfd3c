"""What the journals say was archived, against what is there; a manifest against the journals."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, Discriminator, Tag, TypeAdapter, ValidationError

from bulkfetch.archive.local import PRIVATE
from bulkfetch.errors import DestinationError
from bulkfetch.manifest import Manifest
from bulkfetch.manifest.index import private_database
from bulkfetch.models import ImageOutcome, ManifestRow, PatientState, Summary
from bulkfetch.paths import safe_name
from bulkfetch.verification.findings import Checked, Kind, Reconciled

# What ends with a sidecar in the archive.
_ARCHIVED = {ImageOutcome.downloaded, ImageOutcome.unchanged, ImageOutcome.not_uploaded}
_KEPT = "what the journals say"


class _PatientEvent(BaseModel):
    event: Literal["patient"]
    patient_id: str | None = None
    coverage_id: str | None = None
    state: PatientState
    at: str


class _ImageEvent(BaseModel):
    event: Literal["image"]
    patient_id: str | None = None
    coverage_id: str | None = None
    image_id: str
    version: int
    directory: str
    outcome: ImageOutcome


class _OtherEvent(BaseModel):
    event: str


Event = _PatientEvent | _ImageEvent | _OtherEvent


def _kind_of(event: object) -> str:
    kind = event.get("event") if isinstance(event, dict) else None
    return kind if kind in ("patient", "image") else "other"


_EVENT: TypeAdapter[Event] = TypeAdapter(
    Annotated[
        Annotated[_PatientEvent, Tag("patient")]
        | Annotated[_ImageEvent, Tag("image")]
        | Annotated[_OtherEvent, Tag("other")],
        Discriminator(_kind_of),
    ]
)


class LastWord(NamedTuple):
    """What the journals last said of a manifest row: its state, when, and in which run."""

    state: PatientState
    at: str
    run_id: str


class Journals:
    """All journals of an archive, read once; what they last said of each patient is kept on disk.

    Attributes:
        runs: how many there are.
        without_summary: how many of them were killed, or are at work.
    """

    def __init__(self, root: Path, damaged: set[str]) -> None:
        """`damaged` are the images that findings speak of: paths without their endings."""
        self._root = root
        self._damaged = damaged
        self.runs = 0
        self.without_summary = 0
        with on_disk(_KEPT):
            self._db = private_database()
            self._db.execute(
                "CREATE TABLE said (asked TEXT PRIMARY KEY, state TEXT, at TEXT, run_id TEXT)"
            )
            self._db.execute("CREATE TABLE damaged (asked TEXT PRIMARY KEY)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def check(self, told: Callable[[Checked], None]) -> None:
        """Tell what was archived and is not there, and what is wrong with the journals."""
        runs = self._root / PRIVATE / "runs"
        for run in sorted(path for path in runs.glob("*") if path.is_dir()):
            self.runs += 1
            checked = Checked()
            self._check_run(run, checked)
            told(checked)

    def last_word(self, patient_id: str | None, coverage_id: str | None) -> LastWord | None:
        """Return what was last said of a row with these IDs, None where it was never asked."""
        with on_disk(_KEPT):
            found = self._db.execute(
                "SELECT state, at, run_id FROM said WHERE asked = ?",
                (_key(patient_id, coverage_id),),
            ).fetchone()
        return LastWord(PatientState(found[0]), found[1], found[2]) if found else None

    def is_damaged(self, patient_id: str | None, coverage_id: str | None) -> bool:
        """Tell whether a finding speaks of an image that a row with these IDs brought."""
        with on_disk(_KEPT):
            found = self._db.execute(
                "SELECT 1 FROM damaged WHERE asked = ?", (_key(patient_id, coverage_id),)
            )
            return found.fetchone() is not None

    def _check_run(self, run: Path, checked: Checked) -> None:
        summary = self._summary(run, checked)
        states: Counter[str] = Counter()
        for path in sorted(run.glob("journal*.jsonl")):
            name = str(path.relative_to(self._root))
            try:
                for line in _lines(path):
                    # What a killed run was about to write ends in the middle.
                    if line is None and summary is not None:
                        checked.find(Kind.journal, name, "a line of it is no event")
                    elif line is not None:
                        self._check_event(run.name, line, states, checked)
            except OSError as error:
                checked.find(Kind.unreadable, name, error.strerror or "it cannot be read")
        if summary is None:
            self.without_summary += 1
            return
        said = summary.patients.model_dump()
        for state in (PatientState.complete, PatientState.empty, PatientState.failed):
            if states[state] < said[state]:
                told = f"{states[state]} of the {said[state]} {state} patients of the summary"
                name = str(run.relative_to(self._root))
                checked.find(Kind.journal, name, f"its journals have {told}")

    def _check_event(
        self, run_id: str, event: Event, states: Counter[str], checked: Checked
    ) -> None:
        if isinstance(event, _PatientEvent):
            states[event.state] += 1
            asked = _key(event.patient_id, event.coverage_id)
            with on_disk(_KEPT):
                self._db.execute(
                    "INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?)",
                    (asked, event.state, event.at, run_id),
                )
        elif isinstance(event, _ImageEvent) and event.outcome in _ARCHIVED:
            image = f"{event.directory}/{safe_name(event.image_id)}.v{event.version}"
            if image not in self._damaged and not os.path.lexists(self._root / f"{image}.json"):
                self._damaged.add(image)
                checked.find(Kind.lost, f"{image}.json", f"run {run_id} says that it was archived")
            if image in self._damaged:
                with on_disk(_KEPT):
                    self._db.execute(
                        "INSERT OR IGNORE INTO damaged VALUES (?)",
                        (_key(event.patient_id, event.coverage_id),),
                    )

    def _summary(self, run: Path, checked: Checked) -> Summary | None:
        path = run / "summary.json"
        try:
            return Summary.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            name = str(path.relative_to(self._root))
            checked.find(Kind.journal, name, "it is no summary, or not a whole one")
            return None


def reconcile(
    manifest: Manifest,
    journals: Journals,
    told: Callable[[Checked], None],
    attested: Callable[[ManifestRow, LastWord], None],
) -> Reconciled:
    """Say what became of each row of a checked manifest, by the journals; the sums balance.

    What failed, was not reached, or was never asked is a finding; `attested` gets the rows of which
    the API said that they have no image, and when it said so.
    """
    sums: Counter[str] = Counter()
    for row in manifest.rows():
        checked = Checked()
        word = journals.last_word(row.patient_id, row.coverage_id)
        state = str(word.state) if word else "never_asked"
        if word and word.state is PatientState.complete:
            state = "damaged" if journals.is_damaged(row.patient_id, row.coverage_id) else state
        sums[state] += 1
        if word is None:
            checked.find(Kind.unarchived, row.label, "it was never asked for")
        elif word.state in (PatientState.failed, PatientState.not_reached):
            what = word.state.replace("_", " ")
            checked.find(Kind.unarchived, row.label, f"{what} in run {word.run_id}")
        elif word.state is PatientState.empty:
            attested(row, word)
        told(checked)
    return Reconciled(total=sums.total(), **sums)


def _key(patient_id: str | None, coverage_id: str | None) -> str:
    return json.dumps([patient_id, coverage_id])


def _lines(path: Path) -> Iterator[Event | None]:
    """Yield the events of a journal, None for a line that is none."""
    with path.open("rb") as file:
        for line in file:
            try:
                yield _EVENT.validate_json(line) if line.endswith(b"\n") else None
            except ValidationError:
                yield None


@contextmanager
def on_disk(what: str) -> Iterator[None]:
    """Turn SQLite's word on a private database into a `DestinationError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise DestinationError(
            f"{what} cannot be kept in the temporary directory ({error}): make "
            "room there, or name another by TMPDIR"
        ) from error
