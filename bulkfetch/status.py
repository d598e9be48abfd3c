"""How far the runs at work in an archive are, or how the last one ended.

It is told by what they wrote down, and by who holds the archive: nothing is written, no lock is
taken, and only the newest runs are looked into.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from itertools import count, islice
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bulkfetch.archive import Tree, files, tree_at
from bulkfetch.archive.identity import archive_at
from bulkfetch.archive.tree import read
from bulkfetch.chain import RUN_ID, RUNS, journals_of
from bulkfetch.measures import InFlight
from bulkfetch.models import ImageOutcome, ImageSums, PatientState, PatientSums, Shard, Summary
from bulkfetch.rates import Rate
from bulkfetch.snapshot import SNAPSHOT_NAME, Snapshot
from bulkfetch.tally import Tally
from bulkfetch.words import counted

# A run that writes every second, and was not heard of for so long, is stopped, or its disk is.
SILENT_AFTER_S = 10.0
# Runs that are looked into for the shards of one manifest.
_MOST_RUNS = 1000
_MOST_NAMED = 100
# A summary or a snapshot has some hundred bytes.
_LONGEST_FILE = 2**20
# What is more was not written by a run.
_LARGEST = 2**63

T = TypeVar("T", Snapshot, Summary)


class State(StrEnum):
    """What a run is doing; of several, the first of these that any of them is.

    A `killed` one ended without a summary; `none` is no run at all.
    """

    running = "running"
    killed = "killed"
    finished = "finished"
    none = "none"


class RunStatus(BaseModel):
    """One run.

    Attributes:
        silent_s: seconds since a run that is at work was last heard of; None for others.
        ok: it ended with status 0, or is at work and was heard of lately.
        progress: where it was when it was last heard of; None once there is a summary.
    """

    run_id: str
    state: State
    shard: str | None
    silent_s: float | None = None
    ok: bool
    progress: Snapshot | None = None
    summary: Summary | None = None

    @property
    def numbers(self) -> Snapshot | Summary | None:
        """The sums, from wherever they are known."""
        return self.summary or self.progress


class Status(BaseModel):
    """The runs at work, or the last one; of shards, the last run of each. The sums are all theirs.

    Attributes:
        ok: all of the runs are, and none is missing once none is at work.
        rate: of those at work and heard of, over the last half minute.
        left_s: seconds until the last of them ends at that rate; None where one of them cannot be
            told.
        shards: of how many the runs are; None where they are not.
        missing_shards: those without a run; the first hundred, if there are more.
        problems: what could not be read, in words.
    """

    archive: str
    state: State
    ok: bool
    patients: PatientSums
    images: ImageSums
    bytes: int
    retries: int
    failed_by_kind: dict[str, int]
    in_flight: InFlight
    rate: Rate
    left_s: float | None
    shards: int | None
    missing_shards: list[str]
    runs: list[RunStatus]
    problems: list[str]


def look(out: str) -> Status:
    """Return how far the runs in an archive are; it may be mounted read-only.

    Raises:
        ConfigurationError: there is no archive.
        DestinationError: it cannot be read at all.
    """
    with files.named(out):
        tree = tree_at(out)
        archive_at(tree)
        return _Look(tree).status()


def history(tree: Tree) -> tuple[Status, list[RunStatus]]:
    """Return how far the runs are, and every run, those at work first and then the newest.

    Raises:
        OSError: the archive cannot be read at all.
    """
    every = _Look(tree)
    runs = list(every.every())
    return _Look(tree).status().model_copy(update={"problems": every.problems}), runs


class _Look:
    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._now = datetime.now(UTC)
        self.problems: list[str] = []

    def status(self) -> Status:
        found = self._newest()
        shard = Shard.parse(found[0].shard) if found and found[0].shard else None
        missing = _missing(found, shard.shares) if shard else []
        states = {run.state for run in found}
        state = next((state for state in State if state in states), State.none)
        is_complete = state is State.running or (state is not State.none and not missing)
        running = [run for run in found if run.state is State.running]
        told = [run.progress for run in running if run.progress]
        # Of one that is not heard of, what it last did in a second says nothing.
        heard = [run.progress for run in running if run.progress and run.ok]
        left = [snapshot.left_s for snapshot in heard if snapshot.left_s is not None]
        known = [run.numbers for run in found if run.numbers]
        return Status(
            archive=self._tree.name,
            state=state,
            ok=is_complete and all(run.ok for run in found),
            patients=_added(PatientSums, [one.patients for one in known]),
            images=_added(ImageSums, [one.images for one in known]),
            bytes=sum(one.bytes for one in known),
            retries=sum(one.retries for one in known),
            failed_by_kind=_summed([one.failed_by_kind for one in known]),
            in_flight=sum((snapshot.in_flight for snapshot in told), InFlight()),
            rate=sum((snapshot.rate for snapshot in heard), Rate()),
            left_s=max(left, default=None) if len(left) == len(running) else None,
            shards=shard.shares if shard else None,
            missing_shards=missing,
            runs=found,
            problems=self.problems,
        )

    def _newest(self) -> list[RunStatus]:
        """Return the newest run, or the newest of each shard where it is a shard's."""
        runs = self.every()
        newest = next(runs, None)
        if newest is None or newest.shard is None:
            return [newest] if newest else []
        return self._shards(newest, runs)

    def _shards(self, newest: RunStatus, others: Iterator[RunStatus]) -> list[RunStatus]:
        shares = Shard.parse(newest.shard or "").shares
        found = {newest.shard: newest}
        for run in islice(others, _MOST_RUNS):
            if len(found) == shares:
                break
            if run.shard is not None and Shard.parse(run.shard).shares == shares:
                found.setdefault(run.shard, run)
            elif run.numbers:
                # What is older is of another division of the manifest.
                break
        return sorted(found.values(), key=lambda run: Shard.parse(run.shard or ""))

    def _working(self) -> dict[str, Shard | None]:
        working = self._tree.at_work().items()
        return {run_id: shard for run_id, shard in working if RUN_ID.fullmatch(run_id)}

    def every(self) -> Iterator[RunStatus]:
        """Yield the runs at work, then the others, the newest first."""
        # In this order, so that a run that begins or ends meanwhile is not taken for a killed one.
        try:
            names = self._tree.names(RUNS)
        except FileNotFoundError:
            names = []
        working = self._working()
        strays = sorted(name for name in names if not RUN_ID.fullmatch(name))
        if strays:
            self.problems.append(
                f"{RUNS}: no run's: {counted(len(strays), 'name')}, such as {strays[0]}"
            )
        ids = {*names, *working} - {*strays}
        for run_id in sorted(ids, key=lambda run_id: (run_id in working, run_id), reverse=True):
            if run_id in working and run_id not in names:
                # It has the archive, and clears away what another one left.
                yield _running(run_id, working[run_id], None, self._now)
                continue
            try:
                found = self._run(run_id, working)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.problems.append(f"{RUNS}/{run_id}: {_words(error)}")
                continue
            yield found

    def _run(self, run_id: str, working: dict[str, Shard | None]) -> RunStatus:
        where = f"{RUNS}/{run_id}"
        self._tree.names(where)  # where that is no directory, it is one problem and not three
        # In this order, since a run that ends writes the one and then removes the other.
        progress = self._read(Snapshot, f"{where}/{SNAPSHOT_NAME}")
        summary = self._read(Summary, f"{where}/summary.json")
        if summary:
            return RunStatus(
                run_id=run_id,
                state=State.finished,
                shard=summary.shard,
                ok=summary.exit_code == 0,
                summary=summary,
            )
        if run_id in working:
            return _running(run_id, working[run_id], progress, self._now)
        if progress is None and (progress := _counted(self._tree, run_id)):
            self.problems.append(f"{where}: no {SNAPSHOT_NAME}: its journals are counted")
        shard = progress.shard if progress else None
        return RunStatus(
            run_id=run_id, state=State.killed, shard=shard, ok=False, progress=progress
        )

    def _read(self, kind: type[T], path: str) -> T | None:
        try:
            said = kind.model_validate_json(read(self._tree, path, _LONGEST_FILE))
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(f"{path}: {_words(error)}")
            return None
        except ValidationError:
            said = None
        if said is None or not _is_plausible(said):
            self.problems.append(f"{path}: it is no {kind.__name__.lower()}, or not whole")
            return None
        return said


def _running(
    run_id: str, shard: Shard | None, progress: Snapshot | None, now: datetime
) -> RunStatus:
    # A clock that was set back is no reason for a negative number.
    silent_s = max(0.0, (now - progress.at).total_seconds()) if progress else None
    return RunStatus(
        run_id=run_id,
        state=State.running,
        shard=str(shard) if shard else None,
        silent_s=silent_s,
        ok=silent_s is None or silent_s < SILENT_AFTER_S,
        progress=progress,
    )


def _counted(tree: Tree, run_id: str) -> Snapshot | None:
    """Count what the journals of a run have; None where there is no line of any."""
    tally = Tally()
    first = last = None
    journals = journals_of(tree, run_id)
    for path in journals:
        with suppress(OSError), tree.open(path) as file:
            for line in file:
                if at := _count(line, tally):
                    first, last = min(first or at, at), max(last or at, at)
    if first is None or last is None:
        return None
    tally.total = tally.done
    return Snapshot(
        run_id=run_id,
        shard=None,
        processes=len(journals),
        started_at=first,
        at=last,
        seconds=(last - first).total_seconds(),
        patients=tally.patient_sums(),
        images=tally.image_sums(),
        bytes=tally.bytes,
        retries=0,
        failed_by_kind=dict(sorted(tally.kinds.items())),
        in_flight=InFlight(),
        rate=Rate(),
        mean_rate=Rate(),
        hindrance=None,
    )


def _count(line: bytes, tally: Tally) -> datetime | None:
    """Count a journal's line, and return its time; None where it is none."""
    try:
        event = json.loads(line)
        at = datetime.fromisoformat(event["at"]).astimezone(UTC)
        if event["event"] == "patient":
            tally.patients[PatientState(event["state"])] += 1
            if event["state"] == PatientState.failed:
                tally.kinds[str(event["kind"])] += 1
        elif event["event"] == "image":
            outcome, size = ImageOutcome(event["outcome"]), int(event.get("bytes", 0))
            if not 0 <= size < _LARGEST:
                return None
            tally.images[outcome] += 1
            tally.listed += 1
            tally.bytes += size
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return at


def _is_plausible(said: Snapshot | Summary) -> bool:
    counts = [*said.patients.model_dump().values(), *said.images.model_dump().values()]
    try:
        if said.shard:
            Shard.parse(said.shard)
    except ValueError:
        return False
    ended = said.finished_at if isinstance(said, Summary) else said.at
    return (
        all(0 <= n < _LARGEST for n in (*counts, said.bytes, said.retries))
        and math.isfinite(said.seconds)
        and None not in (said.started_at.tzinfo, ended.tzinfo)
    )


def _missing(found: list[RunStatus], shares: int) -> list[str]:
    there = {run.shard for run in found}
    # As far as there can be some: a number of shares is whatever a file says.
    most = min(shares, len(there) + _MOST_NAMED)
    shards = (str(Shard(number, shares)) for number in islice(count(1), most))
    return [shard for shard in shards if shard not in there][:_MOST_NAMED]


S = TypeVar("S", PatientSums, ImageSums)


def _added(kind: type[S], sums: list[S]) -> S:
    return kind(**_summed([one.model_dump() for one in sums]))


def _summed(parts: list[dict[str, int]]) -> dict[str, int]:
    whole: Counter[str] = Counter()
    for part in parts:
        whole.update(part)
    return dict(whole)


def _words(error: OSError) -> str:
    return error.strerror or str(error)
