"""What the journals say was archived, against what is there; a manifest against the journals."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import ValidationError

from bulkfetch import chain
from bulkfetch.archive import files
from bulkfetch.archive.base import PRIVATE
from bulkfetch.manifest import Manifest
from bulkfetch.manifest.index import on_disk, private_database
from bulkfetch.models import (
    ImageOutcome,
    ImageSums,
    ManifestRow,
    PatientState,
    PatientSums,
    Summary,
)
from bulkfetch.verification.events import (
    Event,
    FinishedEvent,
    ImageEvent,
    PatientEvent,
    QuarantinedEvent,
    event_of,
)
from bulkfetch.verification.findings import Checked, Kind, Reconciled, key_of
from bulkfetch.verification.links import Links, begin_of

# What ends with a sidecar in the archive.
_ARCHIVED = {ImageOutcome.downloaded, ImageOutcome.unchanged, ImageOutcome.not_uploaded}
_KEPT = "what the journals say"


# What a run's last line and its summary both tell: the sums, and the line's own digest.
_End = tuple[PatientSums, ImageSums, int, str]


@dataclass(slots=True)
class _Suspect:
    """A sidecar that is not as a run wrote it, or not there: `found` is its digest now.

    `at` is when the last such run wrote it, `image` what a quarantine would be of.
    """

    found: str | None
    run_id: str
    at: str
    image: str
    asked: set[str] = field(default_factory=set)


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

    def __init__(self, root: Path, damaged: set[str], heads: Collection[str] = ()) -> None:
        """`damaged` are the images that findings speak of: paths without their endings.

        `heads` are digests of journals' lines that somebody kept elsewhere.
        """
        self._root = root
        self._runs = root / PRIVATE / "runs"
        self._damaged = damaged
        self._links = Links(self._runs, heads)
        self._suspects: dict[str, _Suspect] = {}
        self._quarantined: dict[str, str] = {}
        self.runs = 0
        self.without_summary = 0
        with on_disk(_KEPT):
            self._db = private_database()
            self._db.execute(
                "CREATE TABLE said (asked TEXT PRIMARY KEY, state TEXT, at TEXT, run_id TEXT)"
            )
            self._db.execute("CREATE TABLE damaged (asked TEXT PRIMARY KEY)")
            self._db.execute(
                "CREATE TABLE sidecars (path BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def note(self, digests: Sequence[tuple[bytes, bytes]]) -> None:
        """Note the sidecars that were read: by `key_of` their paths, their digests."""
        with on_disk(_KEPT):
            self._db.executemany("INSERT INTO sidecars VALUES (?, ?)", digests)

    def check(self, told: Callable[[Checked], None]) -> None:
        """Tell what was archived and is not there, and what is wrong with the journals."""
        runs = sorted(path for path in self._runs.glob("*") if path.is_dir())
        for run in runs:
            self.runs += 1
            checked = Checked()
            self._check_run(run, checked)
            told(checked)
        checked = Checked()
        self._links.missing(checked)
        if self._suspects:
            self._check_suspects(runs, checked)
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
        end: _End | None = None
        begin = begin_of(run)
        for path in sorted(run.glob("journal*.jsonl")):
            is_first = path.name == chain.FIRST
            name = str(path.relative_to(self._root))
            try:
                followed = self._links.follow(path, None if is_first else begin, checked)
                for line, event in followed:
                    # What a killed process was about to write ends in the middle.
                    may_be_cut = summary is None or not is_first
                    if event is None and (line.endswith(b"\n") or not may_be_cut):
                        checked.find(Kind.journal, name, "a line of it is no event")
                    elif isinstance(event, FinishedEvent):
                        end = (event.patients, event.images, event.bytes, chain.digest(line))
                    elif event is not None:
                        self._check_event(run.name, event, states)
            except OSError as error:
                checked.find(Kind.unreadable, name, error.strerror or "it cannot be read")
        if summary is None:
            self.without_summary += 1
        else:
            self._check_sums(run, summary, states, end, checked)

    def _check_sums(
        self,
        run: Path,
        summary: Summary,
        states: Counter[str],
        end: _End | None,
        checked: Checked,
    ) -> None:
        if end != (summary.patients, summary.images, summary.bytes, summary.head):
            name = str((run / "summary.json").relative_to(self._root))
            checked.find(Kind.journal, name, "its journal has not the same sums")
        said = summary.patients.model_dump()
        for state in (PatientState.complete, PatientState.empty, PatientState.failed):
            if states[state] < said[state]:
                told = f"{states[state]} of the {said[state]} {state} patients of the summary"
                name = str(run.relative_to(self._root))
                checked.find(Kind.journal, name, f"its journals have {told}")

    def _check_event(self, run_id: str, event: Event, states: Counter[str]) -> None:
        if isinstance(event, PatientEvent):
            states[event.state] += 1
            asked = _key(event.patient_id, event.coverage_id)
            with on_disk(_KEPT):
                self._db.execute(
                    "INSERT INTO said VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                    "state = excluded.state, at = excluded.at, run_id = excluded.run_id "
                    "WHERE excluded.at >= at",
                    (asked, event.state, event.at, run_id),
                )
        elif isinstance(event, ImageEvent) and (event.outcome in _ARCHIVED or event.sidecar):
            if event.image in self._damaged:
                self._note_damage(_key(event.patient_id, event.coverage_id))
            else:
                self._compare(run_id, event)
        elif isinstance(event, QuarantinedEvent):
            moved = self._quarantined
            moved[event.image] = max(event.at, moved.get(event.image, ""))

    def _compare(self, run_id: str, event: ImageEvent) -> None:
        """Remember a sidecar that is not there, or is another than was written."""
        with on_disk(_KEPT):
            read = self._db.execute(
                "SELECT digest FROM sidecars WHERE path = ?", (key_of(event.path),)
            ).fetchone()
        if read is None and os.path.lexists(self._root / event.path):
            return  # what could not be read is a finding of its own
        found = read[0].hex() if read else None
        if found is None or event.sidecar not in (None, found):
            suspect = self._suspects.setdefault(
                event.path, _Suspect(found, run_id, event.at, event.image)
            )
            suspect.at = max(event.at, suspect.at)
            suspect.asked.add(_key(event.patient_id, event.coverage_id))

    def _check_suspects(self, runs: Sequence[Path], checked: Checked) -> None:
        """Note which sidecars are not as any run wrote them.

        What was moved to quarantine later, a run has written anew since, or was killed over it:
        then its first sidecar may be one that no line tells of, and further ones are gone.
        """
        for path in (path for run in runs for path in sorted(run.glob("journal*.jsonl"))):
            with suppress(OSError), chain.opened(path) as file:
                for event in map(event_of, file):
                    if not isinstance(event, ImageEvent) or event.path not in self._suspects:
                        continue
                    if event.sidecar and self._suspects[event.path].found == event.sidecar:
                        del self._suspects[event.path]
        for name, suspect in self._suspects.items():
            is_first = name == f"{suspect.image}.json"
            was_moved = suspect.at <= self._quarantined.get(suspect.image, "")
            if was_moved and (suspect.found or not is_first):
                continue
            if suspect.found:
                checked.find(Kind.rewritten, name, f"it is not what run {suspect.run_id} wrote")
            elif suspect.image not in self._damaged:
                self._damaged.add(suspect.image)
                checked.find(Kind.lost, name, f"run {suspect.run_id} says that it was archived")
            for asked in suspect.asked:
                self._note_damage(asked)

    def _note_damage(self, asked: str) -> None:
        with on_disk(_KEPT):
            self._db.execute("INSERT OR IGNORE INTO damaged VALUES (?)", (asked,))

    def _summary(self, run: Path, checked: Checked) -> Summary | None:
        path = run / "summary.json"
        try:
            return Summary.model_validate_json(files.read(path))
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
            checked.find_row(Kind.unarchived, row, "it was never asked for")
        elif word.state in (PatientState.failed, PatientState.not_reached):
            what = word.state.replace("_", " ")
            checked.find_row(Kind.unarchived, row, f"{what} in run {word.run_id}")
        elif word.state is PatientState.empty:
            attested(row, word)
        told(checked)
    return Reconciled(total=sums.total(), **sums)


def _key(patient_id: str | None, coverage_id: str | None) -> str:
    return json.dumps([patient_id, coverage_id])
