"""What the journals say was archived, against what is there; a manifest against the journals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from pydantic import ValidationError

from bulkfetch import chain
from bulkfetch.archive import Tree
from bulkfetch.archive.tree import is_there, read
from bulkfetch.manifest import Manifest
from bulkfetch.manifest.index import on_disk, private_database
from bulkfetch.models import (
    Filters,
    ImageOutcome,
    ImageSums,
    ManifestRow,
    PatientState,
    PatientSums,
    Summary,
)
from bulkfetch.verification.events import (
    DiedEvent,
    Event,
    FinishedEvent,
    ImageEvent,
    PatientEvent,
    QuarantinedEvent,
    StartedEvent,
    event_of,
)
from bulkfetch.verification.findings import Checked, Kind, Reconciled, Spoken, key_of
from bulkfetch.verification.links import Links, begin_of

# What ends with a sidecar in the archive.
_ARCHIVED = {ImageOutcome.downloaded, ImageOutcome.unchanged, ImageOutcome.not_uploaded}
_KEPT = "what the journals say"
_LONGEST_SUMMARY = 2**20

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
    """What the journals last said of a manifest row: its state, when, and in which run.

    `filtered` are the images that a filter left out, and that are not in the archive; `filters`
    those of the run.
    """

    state: PatientState
    at: str
    run_id: str
    filtered: int
    filters: Filters


class Journals:
    """All journals of an archive, read once; what they last said of each patient is kept on disk.

    Attributes:
        runs: how many there are.
        without_summary: how many of them were killed, or are at work.
    """

    def __init__(self, tree: Tree, spoken: Spoken, heads: Collection[str] = ()) -> None:
        """`spoken` is what findings speak of, by the time of `check`.

        `heads` are digests of journals' lines that somebody kept elsewhere.
        """
        self._tree = tree
        self._spoken = spoken
        self._runs: Sequence[str] = []
        # Where they cannot be read, that is a finding of what lies beside the images.
        with suppress(OSError):
            self._runs = chain.runs_of(tree)
        self._links = Links(tree, self._runs, heads)
        self._suspects: dict[str, _Suspect] = {}
        self._quarantined: dict[str, str] = {}
        self._filters: dict[str, Filters] = {}
        self.runs = 0
        self.without_summary = 0
        with on_disk(_KEPT):
            self._db = private_database()
            self._db.execute(
                "CREATE TABLE said (asked TEXT PRIMARY KEY, state TEXT, at TEXT, run_id TEXT, "
                "filtered INTEGER)"
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
        runs = [run for run in self._runs if not self._spoken.explains(f"{chain.RUNS}/{run}")]
        for run in runs:
            self.runs += 1
            checked = Checked()
            with on_disk(_KEPT):
                self._check_run(run, checked)
            told(checked)
        checked = Checked()
        for path, what in self._links.missing_elsewhere():
            if not self._spoken.explains(path):
                checked.find(Kind.chain, path, what)
        if self._suspects:
            with on_disk(_KEPT):
                self._check_suspects(runs, checked)
        told(checked)

    def last_word(self, patient_id: str | None, coverage_id: str | None) -> LastWord | None:
        """Return what was last said of a row with these IDs, None where it was never asked."""
        with on_disk(_KEPT):
            found = self._db.execute(
                "SELECT state, at, run_id, filtered FROM said WHERE asked = ?",
                (_key(patient_id, coverage_id),),
            ).fetchone()
        if found is None:
            return None
        state, at, run_id, filtered = found
        return LastWord(PatientState(state), at, run_id, filtered, self._filters.get(run_id, {}))

    def is_damaged(self, patient_id: str | None, coverage_id: str | None) -> bool:
        """Tell whether a finding speaks of an image that a row with these IDs brought."""
        with on_disk(_KEPT):
            found = self._db.execute(
                "SELECT 1 FROM damaged WHERE asked = ?", (_key(patient_id, coverage_id),)
            )
            return found.fetchone() is not None

    def _check_run(self, run: str, checked: Checked) -> None:
        summary = self._summary(run, checked)
        states: Counter[str] = Counter()
        end: _End | None = None
        are_whole = True
        begin = begin_of(self._tree, run)
        there = self._journals_of(run, checked)
        journals = [path for path in there if not self._spoken.explains(path)]
        for path in journals:
            is_first = path.endswith(f"/{chain.FIRST}")
            # What a killed process was about to write ends in the middle.
            may_be_cut = summary is None or not is_first
            follows = None if is_first else begin
            filtered: Counter[str] = Counter()
            try:
                for line, event in self._links.follow(
                    path, follows, checked, may_be_cut=may_be_cut
                ):
                    if isinstance(event, FinishedEvent):
                        end = (event.patients, event.images, event.bytes, chain.digest(line))
                    elif isinstance(event, DiedEvent):
                        are_whole = False
                    else:
                        self._check_event(run, event, states, filtered)
            except OSError as error:
                checked.find(Kind.unreadable, path, error.strerror or "it cannot be read")
        # A journal of which there is a finding has no other.
        told = {(finding.path or "").partition(":")[0] for finding in checked.findings}
        for path, what in self._links.missing(run):
            if path not in told and not self._spoken.explains(path):
                checked.find(Kind.chain, path, what)
        if summary is None:
            self.without_summary += 1
        elif not checked.findings and journals == there:
            self._check_sums(run, summary, states if are_whole else None, end, checked)

    def _journals_of(self, run: str, checked: Checked) -> Sequence[str]:
        try:
            return chain.journals_of(self._tree, run)
        except OSError as error:
            reason = error.strerror or "it cannot be read"
            checked.find(Kind.unreadable, f"{chain.RUNS}/{run}", reason)
            return []

    def _check_sums(
        self,
        run: str,
        summary: Summary,
        states: Counter[str] | None,
        end: _End | None,
        checked: Checked,
    ) -> None:
        """Compare a run's sums with its journal's, and with its `states`, if all are told."""
        if end != (summary.patients, summary.images, summary.bytes, summary.head):
            name = f"{chain.RUNS}/{run}/summary.json"
            checked.find(Kind.journal, name, "its journal has not the same sums")
            return
        if states is None:
            return
        said = summary.patients.model_dump()
        fewer = [
            f"{states[state]} of the {said[state]} {state}"
            for state in (PatientState.complete, PatientState.empty, PatientState.failed)
            if states[state] < said[state]
        ]
        if fewer:
            told = f"its journals have {', '.join(fewer)} patients of the summary"
            checked.find(Kind.journal, f"{chain.RUNS}/{run}", told)

    def _check_event(
        self, run_id: str, event: Event, states: Counter[str], filtered: Counter[str]
    ) -> None:
        if isinstance(event, PatientEvent):
            states[event.state] += 1
            asked = _key(event.patient_id, event.coverage_id)
            self._db.execute(
                "INSERT INTO said VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "state = excluded.state, at = excluded.at, run_id = excluded.run_id, "
                "filtered = excluded.filtered WHERE excluded.at >= at",
                (asked, event.state, event.at, run_id, filtered.pop(asked, 0)),
            )
        elif isinstance(event, ImageEvent) and event.outcome is ImageOutcome.filtered:
            # An earlier run may have had it.
            if self._digest(event.path) is None:
                filtered[_key(event.patient_id, event.coverage_id)] += 1
        elif isinstance(event, ImageEvent) and (event.outcome in _ARCHIVED or event.sidecar):
            damaged = self._spoken.damaged
            if damaged and event.image in damaged:
                self._note_damage(_key(event.patient_id, event.coverage_id))
            else:
                self._compare(run_id, event)
        elif isinstance(event, StartedEvent) and event.filters:
            self._filters[run_id] = event.filters
        elif isinstance(event, QuarantinedEvent):
            moved = self._quarantined
            moved[event.image] = max(event.at, moved.get(event.image, ""))

    def _compare(self, run_id: str, event: ImageEvent) -> None:
        """Remember a sidecar that is not there, or is another than was written."""
        found = self._digest(event.path)
        if found is None and is_there(self._tree, event.path):
            return  # what could not be read is a finding of its own
        if found is None or event.sidecar not in (None, found):
            suspect = self._suspects.setdefault(
                event.path, _Suspect(found, run_id, event.at, event.image)
            )
            suspect.at = max(event.at, suspect.at)
            suspect.asked.add(_key(event.patient_id, event.coverage_id))

    def _check_suspects(self, runs: Sequence[str], checked: Checked) -> None:
        """Note which sidecars are not as any run wrote them.

        What was moved to quarantine later, a run has written anew since, or was killed over it:
        then its first sidecar may be one that no line tells of, and further ones are gone.
        """
        for path in (path for run in runs for path in self._journals_of(run, Checked())):
            with suppress(OSError), self._tree.open(path) as file:
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
            elif not self._spoken.explains(suspect.image):
                self._spoken.damaged.add(suspect.image)
                checked.find(Kind.lost, name, f"run {suspect.run_id} says that it was archived")
            for asked in suspect.asked:
                self._note_damage(asked)

    def _note_damage(self, asked: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO damaged VALUES (?)", (asked,))

    def _digest(self, path: str) -> str | None:
        """Return the digest of a sidecar that was read."""
        query = "SELECT digest FROM sidecars WHERE path = ?"
        found = self._db.execute(query, (key_of(path),)).fetchone()
        return found[0].hex() if found else None

    def _summary(self, run: str, checked: Checked) -> Summary | None:
        path = f"{chain.RUNS}/{run}/summary.json"
        if self._spoken.explains(path):
            return None
        try:
            return Summary.model_validate_json(read(self._tree, path, _LONGEST_SUMMARY))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            checked.find(Kind.journal, path, "it is no summary, or not a whole one")
            return None


def reconcile(
    manifest: Manifest,
    journals: Journals,
    told: Callable[[Checked], None],
    attested: Callable[[ManifestRow, LastWord], None],
) -> Reconciled:
    """Say what became of each row of a checked manifest, by the journals; the sums balance.

    What failed, was not reached, or was never asked is a finding; `attested` gets the rows of which
    the API said that they have no image, and those of whose images a filter left out some.
    """
    sums: Counter[str] = Counter()
    for row in manifest.rows():
        checked = Checked()
        word = journals.last_word(row.patient_id, row.coverage_id)
        state = str(word.state) if word else "never_asked"
        if word and word.state is PatientState.complete:
            if journals.is_damaged(row.patient_id, row.coverage_id):
                state = "damaged"
            elif word.filtered:
                state = "filtered"
                attested(row, word)
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
