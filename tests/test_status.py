"""`bulkfetch status`: what another terminal can tell of runs at work, killed, or ended."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bulkfetch.archive.local import LocalArchive
from bulkfetch.archive.lock import at_work
from bulkfetch.errors import ConfigurationError
from bulkfetch.models import PatientState, Shard
from bulkfetch.progress import time_text
from bulkfetch.rates import Rate
from bulkfetch.simulator import Simulator, parse_fault
from bulkfetch.snapshot import RATE_OVER_S, Snapshot, SnapshotFile
from bulkfetch.status import SILENT_AFTER_S, State, Status, look
from bulkfetch.tally import Tally
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    start_bulkfetch,
    with_mounts_of_its_own,
    write_manifest,
)
from tests.faulty import balance, failures, whole

RUN = "20260102T030405Z-00000a"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@contextmanager
def at_it(simulator: Simulator, archive: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run of all the simulator's patients, ended with the test."""
    manifest = archive.parent / "patients.csv"
    if not manifest.exists():
        write_manifest(manifest, list(simulator.patient_ids()))
    command: list[str | Path] = ["download", manifest, "--out", archive, "--progress=none"]
    process = start_bulkfetch([*command, "--json", *options], credentials(simulator))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out.decode(), err.decode())


def told(archive: Path) -> tuple[dict[str, Any], int]:
    result = bulkfetch("status", archive, "--json")
    assert result.err == ""
    return result.summary, result.status


def wait_until(archive: Path, holds: Callable[[Status], bool]) -> Status:
    """Look at an archive until something holds of it."""
    deadline = time.monotonic() + 100
    while True:
        # Until the run has made it, there is none.
        if (archive / ".bulkfetch/archive.json").exists() and holds(status := look(str(archive))):
            return status
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_some(status: Status) -> bool:
    return status.state is State.running and status.images.downloaded > 20


def has_some_in_a_journal(archive: Path) -> bool:
    """Tell whether one has an image: journals are brought to the disk once a second only."""
    journals = archive.glob(".bulkfetch/runs/*/journal*")
    return any(b'"outcome":"downloaded"' in journal.read_bytes() for journal in journals)


def balanced(status: dict[str, Any]) -> None:
    patients = dict(status["patients"])
    assert patients.pop("total") == sum(patients.values())
    images = dict(status["images"])
    assert images.pop("listed") >= sum(images.values())
    assert sum(status["failed_by_kind"].values()) == patients["failed"]


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_at_work_tells_how_far_it_is_and_in_the_end_its_summary(
    serve: Serve, archive: Path, processes: int
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.3)
    with at_it(simulator, archive, f"--processes={processes}") as process:
        wait_until(archive, has_some)
        status, exit_status = told(archive)
        assert exit_status == 0
        assert (status["state"], status["ok"], status["problems"]) == ("running", True, [])
        balanced(status)
        assert status["patients"]["total"] == 300
        assert 0 < status["patients"]["not_reached"] < 300
        assert status["bytes"] > 0
        assert 1 <= status["in_flight"]["patients"] <= 48
        assert 1 <= status["in_flight"]["downloads"] <= 32
        assert 0 <= status["in_flight"]["queries"] <= 16
        assert all(value > 0 for value in status["rate"].values())
        assert status["left_s"] > 0
        (run,) = status["runs"]
        assert run["summary"] is None
        assert run["progress"]["run_id"] == run["run_id"]
        assert run["progress"]["processes"] == processes
        assert 0 <= run["silent_s"] < SILENT_AFTER_S
        words = bulkfetch("status", archive)
        assert (words.status, words.out) == (0, "")
        assert f"run {run['run_id']} is at work for" in words.err
        assert re.search(r"left +about \d+ (s|min)", words.err)
        assert re.search(rf"in flight .*; processes: {processes}", words.err)
        (written,) = archive.glob(".bulkfetch/runs/*/progress.json")
        assert written.stat().st_mode & 0o777 == 0o600
        result = ended(process)
    assert result.status == 0, result.err
    status, exit_status = told(archive)
    assert exit_status == 0
    assert status["state"] == "finished"
    (run,) = status["runs"]
    assert run["summary"] == result.summary
    assert run["progress"] is None
    for key in ("patients", "images", "bytes", "retries", "failed_by_kind"):
        assert status[key] == result.summary[key]
    assert not list(archive.glob(".bulkfetch/runs/*/*progress*"))
    words = bulkfetch("status", archive)
    # What the run itself said in the end, below a line of when that was.
    assert words.err.partition("\n")[2] in result.err
    assert re.match(rf"run {run['run_id']} ended \d+ \w+ ago with exit status 0\n", words.err)
    assert bulkfetch("verify", archive).status == 0


def test_shards_side_by_side_are_told_with_their_sums_and_a_missing_one_is_noticed(
    serve: Serve, archive: Path
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.3)
    with (
        at_it(simulator, archive, "--shard=1/3") as first,
        at_it(simulator, archive, "--shard=3/3") as third,
    ):
        both = wait_until(archive, lambda now: len(now.runs) == 2 and has_some(now))
        assert both.ok
        assert [run.shard for run in both.runs] == ["1/3", "3/3"]
        assert (both.shards, both.missing_shards) == (3, ["2/3"])
        parts = [run.progress for run in both.runs if run.progress]
        assert both.patients.total == sum(part.patients.total for part in parts)
        assert both.bytes == sum(part.bytes for part in parts)
        words = bulkfetch("status", archive)
        assert words.status == 0
        assert "no run of  2/3" in words.err
        third.kill()
        third.wait()
        killed = wait_until(archive, lambda now: now.runs[1].state is State.killed)
        assert (killed.state, killed.ok) == (State.running, False)
        summary = ended(first).summary
    status, exit_status = told(archive)
    assert (status["state"], exit_status) == ("killed", 1)
    assert status["runs"][0]["summary"] == summary
    manifest = archive.parent / "patients.csv"
    for number in (2, 3):
        assert download(simulator, manifest, archive, f"--shard={number}/3").status == 0
    status, exit_status = told(archive)
    assert (status["state"], exit_status) == ("finished", 0)
    assert status["patients"]["total"] == 300
    assert status["missing_shards"] == []
    assert "3/3" in bulkfetch("status", archive).err
    # The whole is another matter.
    whole_run = download(simulator, manifest, archive)
    status, _ = told(archive)
    assert [run["run_id"] for run in status["runs"]] == [whole_run.summary["run_id"]]
    assert status["shards"] is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_is_said_to_be_killed_with_its_last_numbers(
    serve: Serve, archive: Path, processes: int
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.2)
    with at_it(simulator, archive, f"--processes={processes}") as process:
        before = wait_until(archive, lambda it: has_some(it) and has_some_in_a_journal(archive))
        process.kill()
        process.communicate()
    status, exit_status = told(archive)
    assert (status["state"], exit_status) == ("killed", 1)
    balanced(status)
    assert status["images"]["downloaded"] >= before.images.downloaded
    words = bulkfetch("status", archive, "--watch")
    assert words.status == 1
    assert "was killed; it was last heard of" in words.err
    assert "run the same command again" in words.err
    (run,) = archive.glob(".bulkfetch/runs/*")
    (run / "progress.json").unlink()
    counted, exit_status = told(archive)
    assert (counted["state"], exit_status) == ("killed", 1)
    assert "its journals are counted" in counted["problems"][0]
    assert 0 < counted["images"]["downloaded"] <= whole(archive)
    assert counted["bytes"] > 0
    balanced(counted)
    for journal in run.glob("journal*"):
        journal.unlink()
    nothing, exit_status = told(archive)
    assert (nothing["state"], exit_status) == ("killed", 1)
    # What it left half-made goes with the next run.
    (run / ".progress.json.part").touch()
    manifest = archive.parent / "patients.csv"
    assert download(simulator, manifest, archive).status == 0
    assert not list(archive.rglob("*.part"))
    assert told(archive)[0]["state"] == "finished"


def test_an_interrupted_run_is_told_by_its_summary(serve: Serve, archive: Path) -> None:
    simulator = serve(patients=400, storage_latency_s=0.2)
    with at_it(simulator, archive) as process:
        wait_until(archive, has_some)
        process.send_signal(signal.SIGINT)
        result = ended(process)
    assert result.status == 130
    status, exit_status = told(archive)
    assert (status["state"], exit_status) == ("finished", 1)
    assert status["runs"][0]["summary"] == result.summary
    words = bulkfetch("status", archive)
    assert "with exit status 130" in words.err
    assert "run the same command again" in words.err


def test_a_run_that_is_throttled_and_fails_tells_so_by_kind(serve: Serve, archive: Path) -> None:
    simulator = serve(
        patients=200,
        api_latency_s=0.05,
        faults=(parse_fault("images:429=1@40%"), parse_fault("storage:404@30%")),
    )
    with at_it(simulator, archive, "--processes=1") as process:
        held_up = wait_until(
            archive, lambda now: bool(now.runs and now.runs[0].progress
            and now.runs[0].progress.hindrance and now.retries and now.patients.failed),
        )  # fmt: skip
        balanced(held_up.model_dump())
        words = bulkfetch("status", archive)
        # The first question was answered or tried again; from then on it is one kind alone.
        assert re.search(r"failures   .*status: \d", words.err)
        process.kill()
    progress = held_up.runs[0].progress
    assert progress is not None
    hindrance = progress.hindrance
    assert hindrance is not None
    assert "throttled to" in hindrance or "is failing" in hindrance
    assert held_up.failed_by_kind["status"] > 0


def test_failures_by_kind_are_in_the_summary_and_told_with_it(serve: Serve, archive: Path) -> None:
    simulator = serve(patients=40, faults=(parse_fault("storage:404@20%"),))
    manifest = write_manifest(archive.parent / "patients.csv", list(simulator.patient_ids()))
    result = download(simulator, manifest, archive, "--processes=2")
    assert result.status == 1
    rows = failures(archive, result.summary["run_id"])
    assert result.summary["failed_by_kind"] == {"status": len(rows)}
    status, exit_status = told(archive)
    assert exit_status == 1
    assert status["failed_by_kind"] == {"status": len(rows)}
    assert f"{len(rows)} failed (status: {len(rows)})" in bulkfetch("status", archive).err


def test_where_there_is_no_archive_it_says_so_with_status_2(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "nowhere", Path("/dev/null")):
        result = bulkfetch("status", where, "--json", "--watch")
        assert (result.status, result.out) == (2, "")
        assert "is no archive" in result.err


def made_by_hand(archive: Path) -> Path:
    """An archive without a run; returns where its runs belong."""
    private = archive / ".bulkfetch"
    private.mkdir(parents=True)
    (private / "archive.json").write_text('{"layout": 1, "api_host": "127.0.0.1"}', "utf-8")
    return private / "runs"


def snapshot(**fields: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    patients = {"total": 10, "complete": 4, "not_reached": 6}
    some = {
        "run_id": RUN, "shard": None, "processes": 1, "started_at": now, "at": now, "seconds": 2.0,
        "patients": patients, "images": {"listed": 8, "downloaded": 8}, "bytes": 800, "retries": 0,
        "failed_by_kind": {}, "in_flight": {"patients": 2, "queries": 1, "downloads": 1},
        "rate": {"patients_per_s": 2.0}, "mean_rate": {}, "hindrance": None,
    }  # fmt: skip
    return some | fields


def summary(**fields: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    some = {
        "run_id": RUN, "started_at": now, "finished_at": now, "seconds": 1.0, "interrupted": False,
        "exit_code": 0, "patients": {"total": 1, "complete": 1}, "images": {}, "bytes": 0,
        "retries": 0, "bulkfetch_version": "0",
    }  # fmt: skip
    return some | fields


def put(directory: Path, name: str, content: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(json.dumps(content), encoding="utf-8")


def hold(archive: Path, run_id: str, shard: str = "") -> None:
    """Pretend that a run is at work: this process."""
    who = {"run_id": run_id, "pid": os.getpid(), "host": os.uname().nodename}
    put(archive / ".bulkfetch", f"holder{shard}.json", who)


def test_an_archive_without_a_run_has_nothing_to_tell(archive: Path) -> None:
    runs = made_by_hand(archive)
    for _ in range(2):
        status, exit_status = told(archive)
        assert (status["state"], status["runs"], exit_status) == ("none", [], 1)
        assert "no run has begun" in bulkfetch("status", archive, "--watch").err
        runs.mkdir(exist_ok=True)


def test_a_run_that_has_told_nothing_yet_is_at_work(archive: Path) -> None:
    made_by_hand(archive)
    hold(archive, RUN)
    status, exit_status = told(archive)
    assert (status["state"], exit_status) == ("running", 0)
    assert "has begun, and told nothing yet" in bulkfetch("status", archive).err
    hold(archive, "\x1b[31m")
    assert look(str(archive)).state is State.none


def test_a_run_that_is_not_heard_of_is_no_success(archive: Path) -> None:
    runs = made_by_hand(archive)
    hold(archive, RUN)
    put(runs / RUN, "progress.json", snapshot(at=str(datetime.now(UTC) - timedelta(seconds=90))))
    status, exit_status = told(archive)
    assert (status["state"], exit_status) == ("running", 1)
    assert status["runs"][0]["silent_s"] >= 90
    assert status["left_s"] is None
    assert not any(status["rate"].values())
    assert re.search("not heard of for [1-9][0-9]* min", bulkfetch("status", archive).err)


def test_a_clock_that_was_set_back_makes_no_negative_number(archive: Path) -> None:
    runs = made_by_hand(archive)
    later = str(datetime.now(UTC) + timedelta(hours=3))
    hold(archive, RUN)
    put(runs / RUN, "progress.json", snapshot(at=later, started_at=later))
    status, exit_status = told(archive)
    assert exit_status == 0
    assert status["runs"][0]["silent_s"] == 0
    assert "is at work for 2 s" in bulkfetch("status", archive).err
    put(runs / RUN, "summary.json", summary(finished_at=later))
    assert "ended 0 s ago" in bulkfetch("status", archive).err
    (runs / RUN / "summary.json").unlink()
    (archive / ".bulkfetch" / "holder.json").unlink()
    assert "last heard of 0 s ago" in bulkfetch("status", archive).err


def test_what_a_stopped_run_left_is_told_the_newest_first_however_many_there_are(
    archive: Path,
) -> None:
    runs = made_by_hand(archive)
    for number in range(1500):
        put(runs / f"20250101T{number:06d}Z-00000a", "summary.json", {"rubbish": True})
    put(runs / RUN, "summary.json", summary())
    status, exit_status = told(archive)
    assert (status["state"], exit_status, status["problems"]) == ("finished", 0, [])
    # Of shards no more than a thousand are looked into, for the one that is missing.
    put(runs / RUN, "summary.json", summary(shard=f"1/{10**16}"))
    status, exit_status = told(archive)
    assert exit_status == 1
    assert status["missing_shards"][:2] == [f"2/{10**16}", f"3/{10**16}"]
    assert len(status["missing_shards"]) == 100
    assert len(status["problems"]) <= 1000
    assert "and more" in bulkfetch("status", archive).err


def test_the_last_run_of_each_shard_counts_and_another_division_ends_the_search(
    archive: Path,
) -> None:
    runs = made_by_hand(archive)
    for number, shard in enumerate(["2/2", "1/3", None, "1/2", "2/2", "1/2", "2/2"]):
        exit_code = 1 if number < 4 else 0
        run = runs / f"20260101T00000{number}Z-00000a"
        put(run, "summary.json", summary(shard=shard, exit_code=exit_code))
    last = look(str(archive))
    assert [run.run_id[14:15] for run in last.runs] == ["5", "6"]
    assert last.ok
    for number in (4, 6):
        shutil.rmtree(runs / f"20260101T00000{number}Z-00000a")
    last = look(str(archive))
    assert last.missing_shards == ["2/2"]
    assert not last.ok
    assert all(run.ok for run in last.runs)


RUBBISH: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    json.dumps(snapshot())[:-40].encode(),
    json.dumps(snapshot(patients={"total": 10**30, "not_reached": 10**30})).encode(),
    json.dumps(snapshot(patients={"total": -1})).encode(),
    json.dumps(snapshot(at="2026-01-01T00:00:00")).encode(),
    json.dumps(snapshot(seconds=float("nan"))).encode(),
    json.dumps(snapshot(rate={"patients_per_s": float("inf")})).encode(),
    json.dumps(snapshot(hindrance="x" * 1000)).encode(),
    json.dumps(snapshot(shard="7/2")).encode(),
    json.dumps(summary(shard="x")).encode(),
    json.dumps(summary(seconds=float("nan"))).encode(),
    json.dumps(summary(finished_at="2026-01-01T00:00:00")).encode(),
    b"x" * 3_000_000,
]


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("number", range(len(RUBBISH)))
def test_rubbish_is_named_and_the_rest_is_told(
    archive: Path, number: int, *, is_held: bool
) -> None:
    runs = made_by_hand(archive)
    (runs / RUN).mkdir(parents=True)
    for name in ("summary.json", "progress.json", "journal.jsonl", "journal-2.jsonl"):
        (runs / RUN / name).write_bytes(RUBBISH[number])
    if is_held:
        hold(archive, RUN)
    (archive / ".bulkfetch" / "holder-1-of-2.json").write_bytes(RUBBISH[number])
    nobody = {"run_id": RUN, "pid": 10**30, "host": os.uname().nodename}
    put(archive / ".bulkfetch", "holder-2-of-2.json", nobody)
    status = look(str(archive))
    assert not status.ok or is_held
    assert status.state is (State.running if is_held else State.killed)
    assert [p.partition(":")[0].rpartition("/")[2] for p in status.problems] == [
        "progress.json", "summary.json"
    ]  # fmt: skip


def test_links_pipes_directories_and_strangers_are_named_and_not_followed(archive: Path) -> None:
    runs = made_by_hand(archive)
    put(runs / "20260101T000000Z-00000a", "summary.json", summary())
    put(archive.parent / "elsewhere", "summary.json", summary(exit_code=1))
    (runs / "20270101T000000Z-00000a").symlink_to(archive.parent / "elsewhere")
    (runs / "20270101T000000Z-00000b").write_text("a file", "utf-8")
    (runs / "no-run\x1b[31m").mkdir()
    status = look(str(archive))
    assert status.ok
    assert len(status.problems) == 3
    words = bulkfetch("status", archive)
    assert words.status == 0
    assert "\x1b" not in words.err
    assert "no-run\\x1b[31m" in words.err
    newest = runs / "20280101T000000Z-00000a"
    newest.mkdir()
    (newest / "summary.json").symlink_to(archive.parent / "elsewhere/summary.json")
    (newest / "progress.json").mkdir()
    os.mkfifo(newest / "journal.jsonl")
    os.mkfifo(archive / ".bulkfetch" / "holder.json")
    words = bulkfetch("status", archive)
    assert words.status == 1
    assert "progress.json: Is a directory" in words.err
    assert "summary.json: Too many levels of symbolic links" in words.err
    assert f"run {newest.name} was killed" in words.err
    shutil.rmtree(runs)
    runs.symlink_to(archive.parent)
    words = bulkfetch("status", archive)
    assert words.status == 4
    assert "is a link" in words.err


def test_nothing_in_a_file_moves_the_cursor(archive: Path) -> None:
    runs = made_by_hand(archive)
    red = "\x1b[31m\n"
    put(runs / RUN, "progress.json", snapshot(hindrance=red, failed_by_kind={red: 1}))
    hold(archive, RUN)
    assert "\\x1b[31m\\n" in bulkfetch("status", archive).err
    put(runs / RUN, "summary.json", summary(run_id=red, failures=red, failed_by_kind={red: 1}))
    for shard in (None, "1/1"):
        put(runs / RUN, "summary.json", summary(shard=shard, failures=red, failed_by_kind={red: 1}))
        words = bulkfetch("status", archive)
        assert "\x1b" not in words.err
        assert "\\x1b[31m\\n" in words.err


def test_runs_that_vanish_while_they_are_looked_at_are_passed_over(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = made_by_hand(archive)
    put(runs / "20260101T000000Z-00000a", "summary.json", summary())
    listdir = os.listdir

    def with_one_more(path: int) -> list[str]:
        return [*listdir(path), RUN]

    monkeypatch.setattr(os, "listdir", with_one_more)
    status = look(str(archive))
    assert status.ok
    assert status.problems == []


def test_it_writes_nothing_and_a_read_only_archive_is_enough(serve: Serve, archive: Path) -> None:
    simulator = serve()
    manifest = write_manifest(archive.parent / "patients.csv", list(simulator.patient_ids()))
    assert download(simulator, manifest, archive).status == 0
    before = {path: path.lstat().st_mtime_ns for path in archive.rglob("*")}
    script = f'mount --bind "{archive}" "{archive}" && mount -o remount,ro,bind "{archive}" && "$@"'
    result = bulkfetch("status", archive, within=with_mounts_of_its_own(script))
    assert result.status == 0, result.err
    assert "patients" in result.err
    assert {path: path.lstat().st_mtime_ns for path in archive.rglob("*")} == before


def test_nothing_that_is_secret_or_a_persons_is_in_what_a_run_writes_about_itself(
    serve: Serve, archive: Path
) -> None:
    simulator = serve(patients=100, storage_latency_s=0.2, faults=(parse_fault("storage:403@30%"),))
    with at_it(simulator, archive, "--retries=0"):
        wait_until(archive, lambda now: now.patients.failed > 0)
        (path,) = archive.glob(".bulkfetch/runs/*/progress.json")
        text = path.read_text("utf-8")
    written = Snapshot.model_validate_json(text)
    assert json.loads(text).keys() == written.model_dump().keys()
    assert set(written.failed_by_kind) <= {"status", "signed_url"}
    assert not [patient for patient in simulator.patient_ids() if patient in text]
    assert "http" not in text


def test_a_run_goes_on_where_it_cannot_tell_how_far_it_is(serve: Serve, archive: Path) -> None:
    simulator = serve(patients=120, storage_latency_s=0.1)
    with at_it(simulator, archive, "--processes=1") as process:
        status = wait_until(archive, lambda now: bool(now.runs and now.runs[0].progress))
        run = archive / ".bulkfetch" / "runs" / status.runs[0].run_id
        # It cannot be made from now on: in the place of what is to be renamed lies a directory.
        (run / ".progress.json.part").mkdir()
        result = ended(process)
    assert result.status == 0, result.err
    assert "error" not in result.err
    balance(result.summary)
    assert result.summary["patients"]["not_reached"] == 0


def test_a_full_disk_ends_a_run_as_it_did(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=60, fixed_bytes=150_000)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size=8m none "{disk}" && {{ "$@"; ended=$?; '
        f'"{sys.executable}" -m bulkfetch status "{disk}/archive"; exit $ended; }}'
    )
    within = with_mounts_of_its_own(script)
    result = download(simulator, manifest, disk / "archive", within=within)
    assert result.status == 4, result.err
    assert "Traceback" not in result.err
    assert "with exit status 4" in result.err
    balance(result.summary)


def test_watching_appends_lines_where_there_is_no_terminal_and_ends_with_the_run(
    serve: Serve, archive: Path
) -> None:
    simulator = serve(patients=200, storage_latency_s=0.3)
    with at_it(simulator, archive) as process:
        wait_until(archive, has_some)
        watching = start_bulkfetch(["status", archive, "--watch", "0.2"], {})
        parsed = start_bulkfetch(["status", archive, "--watch=0.2", "--json"], {})
        result = ended(process)
        words, lines = ended(watching), ended(parsed)
    assert result.status == 0
    assert (words.status, words.out) == (0, "")
    seen = [line for line in words.err.splitlines() if line.startswith("patients: ")]
    assert seen
    assert all(re.match(r"patients: [\d,]+ of 200 \(\d+%\), left: ", line) for line in seen)
    assert "with exit status 0" in words.err
    assert "\x1b" not in words.err
    assert (lines.status, lines.err) == (0, "")
    *before, last = map(json.loads, lines.out.splitlines())
    assert {line["state"] for line in before} == {"running"}
    done = [line["patients"]["complete"] for line in [*before, last]]
    assert done == sorted(done)
    assert last["state"] == "finished"
    assert last["runs"][0]["summary"] == result.summary


def on_a_terminal(arguments: Sequence[str | Path], columns: int, lines: int) -> tuple[int, int]:
    """Start the command on a pseudo-terminal; returns its process and the other end."""
    pid, end = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        command = [sys.executable, "-m", "bulkfetch", *map(str, arguments)]
        os.execv(sys.executable, command)
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    return pid, end


def read_until(end: int, wanted: str | None, seen: str = "") -> str:
    """Read a terminal until something was seen, or to its end."""
    while wanted is None or wanted not in seen:
        try:
            part = os.read(end, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part.decode()
    return seen


def test_watching_on_a_terminal_draws_over_itself_and_ends_with_the_summary(
    serve: Serve, archive: Path
) -> None:
    simulator = serve(patients=200, storage_latency_s=0.3)
    with at_it(simulator, archive) as process:
        wait_until(archive, has_some)
        pid, end = on_a_terminal(["status", archive, "--watch", "0.2"], 30, 7)
        seen = read_until(end, "\x1b[6F\x1b[J")
        ended(process)
        seen = read_until(end, None, seen)
        os.close(end)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    # No line is wrapped, and none scrolls away, while it is drawn over.
    *frames, last = re.split(r"\x1b\[6F\x1b\[J", seen)
    assert frames
    for frame in frames:
        drawn = frame.removeprefix("\x1b[J").splitlines()
        assert len(drawn) == 6
        assert max(map(len, drawn)) < 30
    assert "with exit status 0" in last


def test_ctrl_c_ends_watching_quietly(serve: Serve, archive: Path) -> None:
    simulator = serve(patients=300, storage_latency_s=0.5)
    with at_it(simulator, archive) as process:
        wait_until(archive, has_some)
        pid, end = on_a_terminal(["status", archive, "--watch"], 80, 24)
        seen = read_until(end, "in flight")
        os.write(end, b"\x03")
        seen = read_until(end, None, seen)
        os.close(end)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
        assert "interrupted" not in seen
        assert "Traceback" not in seen
        assert process.poll() is None


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "DEST", "4000"])
def test_an_interval_that_is_none_is_refused(archive: Path, seconds: str) -> None:
    result = bulkfetch("status", archive, f"--watch={seconds}")
    assert result.status == 2
    assert "must be seconds from 0.1 to 3600" in result.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7860, "2 h 11 min"),
        (86400 * 3 + 7200, "3 d 2 h"), (86400 * 2000 + 59, "2,000 d"),
    ],
)  # fmt: skip
def test_a_time_span_is_told_in_two_units(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_a_rate_is_that_of_the_last_half_minute_and_the_mean_is_of_all() -> None:
    now = [0.0]
    file = SnapshotFile(
        Mock(spec=LocalArchive),
        RUN,
        shard=None,
        filters={},
        processes=1,
        started_at=datetime.now(UTC),
        clock=lambda: now[0],
    )
    tally = Tally(1000)
    assert file._take(tally, 0).rate == Rate()
    assert file._take(tally, 0).left_s is None
    for _ in range(100):
        now[0] += 1
        tally.patients[PatientState.complete] += 1
        file._take(tally, 0)
    for _ in range(RATE_OVER_S):
        now[0] += 1
        tally.patients[PatientState.complete] += 3
        last = file._take(tally, 0)
    assert last.rate.patients_per_s == 3
    assert last.mean_rate.patients_per_s == round(190 / 130, 3)
    assert last.left_s == 270
    assert len(file._speed._samples) <= RATE_OVER_S + 2
    for _ in range(RATE_OVER_S + 1):
        now[0] += 1
        last = file._take(tally, 0)
    # Nothing has ended of late, so that there is no end in sight.
    assert (last.rate, last.left_s) == (Rate(), None)


def test_who_is_at_work_is_told_with_its_shard(archive: Path) -> None:
    made_by_hand(archive)
    hold(archive, "a", "-2-of-4")
    hold(archive, "b", "-3-of-4")
    dead = {"run_id": "c", "pid": 2**31 - 1, "host": os.uname().nodename}
    put(archive / ".bulkfetch", "holder-4-of-4.json", dead)
    assert at_work(archive / ".bulkfetch") == {"a": Shard(2, 4), "b": Shard(3, 4)}


def test_python_is_told_by_an_error_that_there_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no archive"):
        look(str(tmp_path))
