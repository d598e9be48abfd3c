"""What the page tells besides the single images: sums, runs, failures, and how it all stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from bulkfetch._version import __version__
from bulkfetch.archive import Identity, Tree
from bulkfetch.models import ImageSums, PatientSums
from bulkfetch.report.advice import ADVICE
from bulkfetch.report.gather import FailedPatient, Gathered, Sums
from bulkfetch.report.images import ImageState
from bulkfetch.status import RunStatus, State, Status
from bulkfetch.words import counted, filters_text

_MOST_PATIENTS = 1_000
_MOST_RUNS = 100
_MOST_VALUES = 12
_FACETS = {
    "state": "State",
    "status": "Status at the API",
    "type": "Type",
    "side": "Side",
    "version": "Version",
}


class Verdict(NamedTuple):
    """How an archive stands: `level` is good, busy, warn or bad; `advice` what to do next."""

    level: str
    words: str
    advice: str


class Value(NamedTuple):
    """A value that images have in a column, and how many have it; `rest` is all further ones."""

    value: Any
    images: int
    rest: bool = False


class Trouble(NamedTuple):
    """A kind of error: rows and images that failed last by it, and what was tried again."""

    kind: str
    patients: int
    images: int
    retried: int
    advice: str


@dataclass(frozen=True)
class Facts:
    """All of it, as the template takes it.

    Attributes:
        patients: manifest rows by what the journals said of them last.
        facets: images by state, status, type, side and version: by column, its title and values.
        failed: the first of the rows that failed last.
        older_runs: how many runs are not among `runs`.
    """

    made_at: datetime
    version: str
    archive: str
    identity: Identity
    status: Status
    verdict: Verdict
    notices: Sequence[str]
    patients: Mapping[str, int]
    sums: Sums
    facets: Mapping[str, tuple[str, Sequence[Value]]]
    troubles: Sequence[Trouble]
    failed: Sequence[FailedPatient]
    runs: Sequence[RunStatus]
    older_runs: int


def facts_of(
    tree: Tree,
    identity: Identity,
    gathered: Gathered,
    *,
    status: Status,
    runs: Sequence[RunStatus],
    notices: Sequence[str],
) -> Facts:
    """Return what there is to tell of an archive."""
    patients = gathered.patient_sums()
    facets = {column: (title, _values(gathered.by(column))) for column, title in _FACETS.items()}
    facets["version"][1].sort(key=lambda one: (one.rest, one.value or 0))
    states = Counter(dict(gathered.by("state")))
    return Facts(
        made_at=datetime.now(UTC),
        version=__version__,
        archive=tree.name,
        identity=identity,
        status=status,
        verdict=_verdict(status, runs, patients, states, gathered.runs_that_filtered()),
        notices=notices,
        patients=patients,
        sums=gathered.sums(),
        facets=facets,
        troubles=_troubles(status, gathered),
        failed=gathered.failed_patients(_MOST_PATIENTS),
        runs=runs[:_MOST_RUNS],
        older_runs=max(0, len(runs) - _MOST_RUNS),
    )


def balances(sums: PatientSums | ImageSums) -> bool:
    """Tell whether a total is the sum of its parts."""
    total, *parts = sums.model_dump().values()
    return bool(total == sum(parts))


def _values(found: Iterable[tuple[Any, int]]) -> list[Value]:
    values = [Value(value, images) for value, images in found]
    shown, others = values[:_MOST_VALUES], values[_MOST_VALUES:]
    if others:
        shown.append(Value(None, sum(one.images for one in others), rest=True))
    return shown


def _troubles(status: Status, gathered: Gathered) -> list[Trouble]:
    patients = gathered.failed_by_kind("patients")
    images = gathered.failed_by_kind("images")
    retried: Counter[str] = Counter()
    for run in status.runs:
        if run.numbers:
            retried.update(run.numbers.retried_by_kind)
    kinds = {*patients, *images, *retried}
    troubles = [
        Trouble(
            kind,
            patients.get(kind, 0),
            images.get(kind, 0),
            retried[kind],
            ADVICE.get(kind, ADVICE["failed"]),
        )
        for kind in kinds
    ]
    return sorted(troubles, key=lambda one: (-one.patients, -one.images, -one.retried, one.kind))


def _verdict(
    status: Status,
    runs: Iterable[RunStatus],
    patients: Mapping[str, int],
    states: Mapping[str, int],
    filtered_by: Collection[str],
) -> Verdict:
    """Judge by the images' `states`; those that are filtered out are so by these runs' filters."""
    if status.state is State.none:
        return Verdict("warn", "No run has begun in this archive", "bulkfetch download fills it")
    if status.state is State.running:
        return Verdict(
            "busy",
            "A run is at work",
            "this page tells what was written down by now: make it again when the run has ended",
        )
    harmed = states[ImageState.damaged] + states[ImageState.missing]
    if harmed:
        return Verdict(
            "bad",
            f"{counted(harmed, 'image')} damaged or missing",
            "bulkfetch verify says what is wrong; download with the same manifest mends it",
        )
    if failed := patients["failed"]:
        return Verdict(
            "bad", f"{counted(failed, 'patient')} failed", "see below what to do about each kind"
        )
    if cut_short := _cut_short(status, runs, patients):
        return cut_short
    return _whole(runs, states, filtered_by)


def _whole(
    runs: Iterable[RunStatus], states: Mapping[str, int], filtered_by: Collection[str]
) -> Verdict:
    aside = []
    if not_uploaded := states[ImageState.not_uploaded]:
        aside.append(f"{counted(not_uploaded, 'image')} not uploaded")
    if filtered := states[ImageState.filtered]:
        filters = {
            filters_text(run.numbers.filters)
            for run in runs
            if run.numbers and run.run_id in filtered_by
        }
        by = " or ".join(sorted(filters))
        aside.append(f"{counted(filtered, 'image')} filtered out by {by}")
    but_for = f"but for {' and '.join(aside)}" if aside else ""
    if not filtered:
        return Verdict("good", "All that was listed is in the archive", but_for)
    if not states[ImageState.archived]:
        return Verdict("warn", "No image is in the archive", " and ".join(aside))
    return Verdict("good", "All that was wanted is in the archive", but_for)


def _cut_short(
    status: Status, runs: Iterable[RunStatus], patients: Mapping[str, int]
) -> Verdict | None:
    again = "run its command again: it goes on from there"
    if status.missing_shards:
        return Verdict("warn", "Not every shard has had a run", "see below which")
    if status.patients.not_reached or status.state is State.killed:
        return Verdict("warn", "The last run did not come to its end", again)
    if not status.ok:
        return Verdict("warn", "The last run did not end well", again)
    if patients["not_reached"] or _is_one_cut_short(runs, status.patients.total):
        return Verdict("warn", "An earlier run did not come to its end", again)
    return None


def _is_one_cut_short(runs: Iterable[RunStatus], rows: int) -> bool:
    """Tell whether a run was killed, or left rows, and none of as many `rows` ended well since.

    The rows that a killed run did not reach are in no journal.
    """
    for run in runs:
        if not (numbers := run.numbers):
            continue
        total = numbers.patients.total
        is_short = run.state is State.killed or numbers.patients.not_reached
        if is_short and total > rows:
            return True
        if run.ok:
            rows = max(rows, total)
    return False
