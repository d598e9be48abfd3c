"""Several processes on one run: bounds that are the run's, deaths that are noticed, one archive."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from bulkfetch import Settings, download_async, errors
from bulkfetch.api import LentTokens, Token
from bulkfetch.archive import files
from bulkfetch.archive.base import Identity, Mark
from bulkfetch.archive.local import LocalArchive
from bulkfetch.errors import ConnectionFailedError, CredentialsError, FetchError, StatusError
from bulkfetch.limits import processes_for
from bulkfetch.pipeline import crew
from bulkfetch.pipeline.crew import without_credentials
from bulkfetch.pipeline.processes import share_of
from bulkfetch.plan import Place
from bulkfetch.retry import FIRST_RETRIES, RETRIES_PER_SUCCESS, Budget
from bulkfetch.simulator import Simulator, parse_fault
from tests.conftest import (
    Result,
    Serve,
    credentials,
    download,
    sidecars,
    start_bulkfetch,
    with_mounts_of_its_own,
    write_manifest,
)
from tests.faulty import balance, failures, intact, whole
from tests.test_archive import SMALL, put

IDENTITY = Identity(api_host="127.0.0.1")
PLACE = Place("p-1", "i-1.v1")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "patients.csv"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def events(archive: Path) -> list[dict[str, Any]]:
    """Every line of every journal."""
    paths = sorted(archive.glob(".bulkfetch/runs/*/journal*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]


def started(simulator: Simulator, *arguments: str | Path) -> subprocess.Popen[bytes]:
    command: list[str | Path] = ["download", *arguments, "--progress=none", "--json"]
    return start_bulkfetch(command, credentials(simulator))


def helpers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that another one started."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii")
    except OSError:
        return []
    return [int(child) for child in children.split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for_journals(archive: Path, process: subprocess.Popen[bytes], number: int = 2) -> None:
    """Wait until as many processes have noted that they are at work."""
    deadline = time.monotonic() + 120
    while journals(archive) < number:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=120)
    assert b"Traceback" not in err
    return Result(process.returncode, out.decode(), err.decode())


def test_several_processes_make_one_whole_archive_with_one_token(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.02)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, archive, "--processes=3")
    assert result.status == 0, result.err
    balance(result.summary)
    assert result.summary["patients"]["total"] == 300
    intact(simulator, archive)
    assert simulator.requests["token"] == 1
    assert simulator.requests["images"] == 300
    journals = list(archive.glob(".bulkfetch/runs/*/journal*.jsonl"))
    assert {path.name for path in journals} == {
        "journal.jsonl", "journal-2.jsonl", "journal-3.jsonl"
    }  # fmt: skip
    seen = Counter(event["event"] for event in events(archive))
    assert seen["run_started"] == seen["run_finished"] == 1
    assert seen["patient"] == 300
    assert seen["image"] == result.summary["images"]["listed"]
    patients = Counter(e["patient_id"] for e in events(archive) if e["event"] == "patient")
    assert set(patients.values()) == {1}
    again = download(simulator, manifest, archive, "--processes=2")
    assert again.status == 0
    assert again.summary["images"]["downloaded"] == 0


def test_bounds_are_those_of_the_whole_run(serve: Serve, manifest: Path, archive: Path) -> None:
    simulator = serve(patients=60, api_latency_s=0.3, storage_latency_s=0.3)
    write_manifest(manifest, list(simulator.patient_ids()))
    bounds = ("--query-concurrency=5", "--download-concurrency=7")
    result = download(simulator, manifest, archive, "--processes=3", *bounds)
    assert result.status == 0, result.err
    assert 3 < simulator.peak_in_flight["images"] <= 5
    assert 3 < simulator.peak_in_flight["storage"] <= 7


@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(1, 64), st.floats(0.1, 1000))
def test_shares_add_up_and_none_is_empty(
    queries: int, downloads: int, wanted: int, rate: float
) -> None:
    settings = Settings(
        out="archive",
        query_concurrency=queries,
        download_concurrency=downloads,
        rate_limit=rate,
        processes=wanted,
    )
    processes = processes_for(settings, 1)
    assert 1 <= processes <= wanted
    shares = [share_of(settings, number, processes) for number in range(1, processes + 1)]
    assert sum(share.query_concurrency for share in shares) == queries
    assert sum(share.download_concurrency for share in shares) == downloads
    assert sum(share.rate_limit or 0 for share in shares) == pytest.approx(rate)
    assert all(share.query_concurrency and share.download_concurrency for share in shares)


def test_a_small_manifest_and_a_dry_run_are_not_worth_a_second_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert processes_for(Settings(out="archive"), 399) == 1
    assert processes_for(Settings(out="archive"), 10**6) == 4
    assert processes_for(Settings(out="archive", dry_run=True, processes=8), 10**6) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert processes_for(Settings(out="archive"), 10**6) == 1
    assert processes_for(Settings(out="archive", processes=8), 10) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert processes_for(Settings(out="archive"), 10**6) == 2
    assert processes_for(Settings(out="file:///archive"), 10**6) == 2
    assert processes_for(Settings(out="s3://bucket/archive"), 10**6) == 1


def test_the_retry_budget_is_shared() -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(Budget.size_bytes(2)))
        first, second = (Budget(file.fileno(), number, 2) for number in (1, 2))
        for _ in range(FIRST_RETRIES // 2):
            assert first.take()
            assert second.take()
        assert not first.take()
        assert not second.take()
        second.note_success()
        assert [first.take() for _ in range(RETRIES_PER_SUCCESS + 1)] == [True] * 3 + [False]
        assert first.count == second.count == FIRST_RETRIES + RETRIES_PER_SUCCESS


def test_a_dead_service_is_asked_again_no_oftener_by_several_processes(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=300, faults=(parse_fault("storage:404"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, archive, "--processes=2", "--max-failures=20")
    assert result.status == 1
    balance(result.summary)
    assert result.summary["patients"]["not_reached"] > 0
    assert 20 <= len(failures(archive, result.summary["run_id"])) < 200
    assert result.summary["patients"]["failed"] == len(failures(archive, result.summary["run_id"]))


@pytest.mark.parametrize(("lifetime_s", "fault"), [(3, "latency=0.1"), (3600, "token-death@5%")])
def test_a_token_that_ends_is_renewed_by_one_process_for_all(
    serve: Serve, manifest: Path, archive: Path, lifetime_s: int, fault: str
) -> None:
    # However fast the machine, it takes longer than a token of three seconds lives.
    simulator = serve(patients=180, api_latency_s=0.3, token_lifetime_s=lifetime_s)
    write_manifest(manifest, list(simulator.patient_ids()))
    process = started(simulator, manifest, "--out", archive, "--processes=3")
    wait_for_journals(archive, process)
    simulator.faults.add(parse_fault(f"images:{fault}"))
    result = ended(process)
    assert result.status == 0, result.err
    intact(simulator, archive)
    assert simulator.requests["token"] > 1
    assert simulator.peak_in_flight["token"] == 1


async def test_a_refused_token_is_told_to_the_lender_once() -> None:
    told: list[tuple[str | None, bool]] = []

    async def borrow(refused: str | None, accepted: bool) -> Token:
        told.append((refused, accepted))
        await asyncio.sleep(0)
        if len(told) == 3:
            raise CredentialsError("no more")
        return Token(SecretStr(f"token-{len(told)}"), time.monotonic() + 60)

    tokens = LentTokens(borrow)
    assert set(await asyncio.gather(*(tokens.get() for _ in range(10)))) == {"token-1"}
    tokens.accepted()
    tokens.refused("token-1")
    tokens.refused("token-1")
    assert set(await asyncio.gather(*(tokens.get() for _ in range(10)))) == {"token-2"}
    tokens.refused("token-1")
    assert await tokens.get() == "token-2"
    tokens.refused("token-2")
    with pytest.raises(CredentialsError):
        await tokens.get()
    assert told == [(None, False), ("token-1", True), ("token-2", False)]


def test_a_process_that_is_killed_costs_the_patients_it_had_which_are_named(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.1)
    write_manifest(manifest, list(simulator.patient_ids()))
    process = started(simulator, manifest, "--out", archive, "--processes=2")
    wait_for_journals(archive, process)
    (helper,) = helpers_of(process)
    os.kill(helper, signal.SIGKILL)
    result = ended(process)
    assert result.status == 1, result.err
    assert "died (SIGKILL)" in result.err
    balance(result.summary)
    lost = failures(archive, result.summary["run_id"])
    assert {row["bulkfetch_kind"] for row in lost} == {"process_died"}
    # As many as it can have begun: half of 16 queries and 32 downloads.
    assert 1 <= len(lost) == result.summary["patients"]["failed"] <= 24
    assert result.summary["patients"]["not_reached"] == 0
    whole(archive)
    # What it left half-made beside an image goes when the next run starts.
    directory = next(archive.glob("[!.]*"))
    (directory / f".i-1.v1.{result.summary['run_id'][-6:]}-2.part").touch()
    again = download(simulator, Path(result.summary["failures"]), archive)
    assert again.status == 0, again.err
    assert again.summary["patients"]["total"] == len(lost)
    intact(simulator, archive)


async def test_how_a_process_ended_is_known_however_late_its_end_is_told(
    serve: Serve,
    manifest: Path,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    waitpid = os.waitpid

    def late(pid: int, options: int) -> tuple[int, int]:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        time.sleep(0.3)
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", late)
    simulator = serve(patients=300, storage_latency_s=0.2)
    write_manifest(manifest, list(simulator.patient_ids()))
    job = asyncio.create_task(download_async(manifest, settings_for(simulator, archive, 2)))
    (helper,) = await at_work(archive, 1)
    os.kill(helper, signal.SIGKILL)
    await job
    assert "died (SIGKILL)" in caplog.text


def test_whenever_a_process_is_killed_every_patient_has_its_state(
    serve: Serve, manifest: Path, tmp_path: Path
) -> None:
    simulator = serve(patients=90, storage_latency_s=0.05)
    write_manifest(manifest, list(simulator.patient_ids()))
    for tenths in range(6):
        archive = tmp_path / f"archive-{tenths}"
        # Nothing ends before the second process has begun, however long that takes.
        simulator.faults.add(parse_fault("storage:latency=2"))
        process = started(simulator, manifest, "--out", archive, "--processes=2")
        wait_for_journals(archive, process)
        simulator.faults.clear()
        time.sleep(tenths / 10)
        for helper in helpers_of(process):
            os.kill(helper, signal.SIGKILL)
        result = ended(process)
        balance(result.summary)
        assert result.summary["patients"]["not_reached"] == 0, result.err
        lost = failures(archive, result.summary["run_id"]) if result.status else []
        assert len(lost) == result.summary["patients"]["failed"]
        whole(archive)


def test_when_the_first_process_is_killed_the_others_end_and_only_then_another_run_begins(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=400, fixed_bytes=200_000, storage_latency_s=0.05)
    write_manifest(manifest, list(simulator.patient_ids()))
    for _ in range(3):
        process = started(simulator, manifest, "--out", archive, "--processes=3")
        before = len(sidecars(archive))
        deadline = time.monotonic() + 120
        while len(sidecars(archive)) < before + 20 or len(helpers_of(process)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        helpers = helpers_of(process)
        process.kill()
        process.communicate(timeout=10)
        deadline = time.monotonic() + 120
        while any(map(is_running, helpers)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        whole(archive)
    result = download(simulator, manifest, archive, "--processes=2")
    assert result.status == 0, result.err
    intact(simulator, archive)


def test_a_run_waits_for_the_last_process_of_one_that_was_killed(archive: Path) -> None:
    inherits = (
        "import os, sys, time; from tests.test_processes import IDENTITY, LocalArchive\n"
        "with LocalArchive.open(sys.argv[1], 'run-dead', IDENTITY):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(1); os._exit(0)\n"
        "    os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", inherits, str(archive)], check=True, timeout=30)
    began = time.monotonic()
    with LocalArchive.open(str(archive), "run-1", IDENTITY):
        assert time.monotonic() - began > 0.2


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_in_order(
    serve: Serve,
    manifest: Path,
    archive: Path,
    number: signal.Signals,
    status: int,
    *,
    to_all: bool,
) -> None:
    simulator = serve(patients=400, storage_latency_s=0.1)
    write_manifest(manifest, list(simulator.patient_ids()))
    process = started(simulator, manifest, "--out", archive, "--processes=3")
    wait_for_journals(archive, process, 3)
    helpers = helpers_of(process)
    # A service manager tells every process of a service.
    for pid in [*helpers, process.pid] if to_all else [process.pid]:
        os.kill(pid, number)
    result = ended(process)
    assert result.status == status, result.err
    assert not any(map(is_running, helpers))
    balance(result.summary)
    assert result.summary["patients"]["not_reached"] > 0
    assert result.summary["patients"]["failed"] == 0
    done = {k for k, s in sidecars(archive).items() if s["outcome"] == "downloaded"}
    assert len(done) == result.summary["images"]["downloaded"] > 0
    assert not list(archive.rglob("*.part"))
    again = download(simulator, manifest, archive)
    assert again.status == 0
    assert again.summary["images"]["unchanged"] == len(done)


def test_a_second_signal_ends_all_processes_at_once(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=100, faults=(parse_fault("storage:stall=60@90%"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    process = started(simulator, manifest, "--out", archive, "--processes=2")
    wait_for_journals(archive, process)
    helpers = helpers_of(process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    result = ended(process)
    assert result.status == 130
    assert time.monotonic() - began < 10
    assert not any(map(is_running, helpers))
    balance(result.summary)


def test_a_process_that_does_not_answer_is_not_waited_for_when_the_run_is_to_end(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.1)
    write_manifest(manifest, list(simulator.patient_ids()))
    process = started(simulator, manifest, "--out", archive, "--processes=2")
    wait_for_journals(archive, process)
    (helper,) = helpers_of(process)
    os.kill(helper, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    result = ended(process)
    assert result.status == 143
    assert not is_running(helper)
    balance(result.summary)
    whole(archive)


async def test_a_process_that_does_not_answer_is_killed_in_the_end(
    serve: Serve, manifest: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.1)
    write_manifest(manifest, list(simulator.patient_ids()))
    job = asyncio.create_task(download_async(manifest, settings_for(simulator, archive, 2)))
    (helper,) = await at_work(archive, 1)
    os.kill(helper, signal.SIGSTOP)
    monkeypatch.setattr(crew, "SILENT_AT_MOST_S", 3)
    summary = await asyncio.wait_for(job, 60)
    assert not is_running(helper)
    assert summary.exit_code == 1
    assert 1 <= summary.patients.failed <= 24
    assert summary.patients.not_reached == 0
    kinds = {row["bulkfetch_kind"] for row in failures(archive, summary.run_id)}
    assert kinds == {"process_died"}
    balance(summary.model_dump())
    whole(archive)


async def test_a_cancelled_run_leaves_no_process_no_lock_and_sums_that_balance(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.1)
    write_manifest(manifest, list(simulator.patient_ids()))
    settings = settings_for(simulator, archive, 3)
    job = asyncio.create_task(download_async(manifest, settings))
    helpers = await at_work(archive, 2)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not any(map(is_running, helpers))
    summary = summary_in(archive)
    balance(summary)
    # A write that is under way is not called off, and nobody waits for its word.
    there = [sidecar for sidecar in sidecars(archive).values() if sidecar["file"]]
    assert summary["images"]["downloaded"] <= len(there)
    again = await download_async(manifest, settings)
    assert again.exit_code == 0
    intact(simulator, archive)


async def at_work(archive: Path, number: int) -> list[int]:
    """Wait until this process's helpers have journals, and return their process IDs."""
    for _ in range(3000):
        await asyncio.sleep(0.01)
        if journals(archive) == number + 1:
            break
    return helpers_of_this()


def journals(archive: Path) -> int:
    return len(list(archive.glob(".bulkfetch/runs/*/journal*.jsonl")))


def helpers_of_this() -> list[int]:
    children = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children")
    found = [int(child) for child in children.read_text("ascii").split()]
    return [pid for pid in found if b"pipeline.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def summary_in(archive: Path) -> dict[str, Any]:
    (path,) = archive.glob(".bulkfetch/runs/*/summary.json")
    summary = json.loads(path.read_bytes())
    assert isinstance(summary, dict)
    return summary


def settings_for(simulator: Simulator, archive: Path, number: int) -> Settings:
    return Settings(
        out=str(archive),
        api_url=simulator.api_url,
        client_id=simulator.config.client_id,
        client_secret=SecretStr(simulator.config.client_secret),
        processes=number,
    )


def test_a_helper_whose_journal_cannot_be_written_ends_the_run(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=1000, images_per_patient=0, api_latency_s=0.05)
    write_manifest(manifest, list(simulator.patient_ids()))
    process = started(simulator, manifest, "--out", archive, "--processes=2")
    wait_for_journals(archive, process)
    (helper,) = helpers_of(process)
    resource.prlimit(helper, resource.RLIMIT_FSIZE, (10_000, 10_000))
    result = ended(process)
    assert result.status == 4, result.err
    assert "journal-2.jsonl cannot be used" in result.err
    balance(result.summary)
    assert result.summary["patients"]["not_reached"] > 0
    whole(archive)


def test_many_processes_for_little_work_are_not_waited_for(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=5)
    write_manifest(manifest, list(simulator.patient_ids()))
    many = ("--processes=20", "--query-concurrency=64", "--download-concurrency=64")
    result = download(simulator, manifest, archive, *many)
    assert result.status == 0
    assert not result.err.count("error:")
    intact(simulator, archive)


def test_a_full_disk_stops_all_processes(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve(patients=60, fixed_bytes=150_000)
    write_manifest(manifest, list(simulator.patient_ids()))
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=8m none "{disk}" && {{ "$@"; }}'
    result = download(
        simulator,
        manifest,
        disk / "archive",
        "--processes=3",
        within=with_mounts_of_its_own(script),
    )
    assert result.status == 4, result.err
    assert "Traceback" not in result.err
    balance(result.summary)
    assert result.summary["patients"]["not_reached"] > 0


def test_an_image_that_two_rows_list_is_archived_once_whoever_has_them(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=40, api_latency_s=0.05, storage_latency_s=0.05)
    rows = []
    for patient in simulator.patient_ids():
        rows.append(f"{patient},")
        rows += [f",{coverage}" for coverage in simulator.coverage_ids(patient)]
    manifest.write_text("\n".join(["patient_id,coverage_id", *rows]) + "\n", encoding="utf-8")
    result = download(simulator, manifest, archive, "--processes=4", "--no-fsync")
    assert result.status == 0, result.err
    balance(result.summary)
    whole(archive)
    found = sidecars(archive).values()
    assert result.summary["images"]["downloaded"] == len([s for s in found if s["file"]])
    assert not list(archive.glob(".bulkfetch/quarantine/*"))


async def test_a_busy_directory_is_waited_for_only_by_what_belongs_there(archive: Path) -> None:
    with LocalArchive.open(
        str(archive), "run-a1", IDENTITY, durable=False, is_joined=True
    ) as opened:
        (archive / "p-1").mkdir()
        with files.descriptor(archive / "p-1") as directory:
            assert files.lock(directory)
            waiting = asyncio.create_task(put(opened, SMALL, Place("p-1", "i-1.v1")))
            await put(opened, SMALL, Place("p-2", "i-2.v1"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            files.unlock(directory)
            await waiting
    assert (archive / "p-1" / "i-1.v1.json").exists()


async def test_a_long_part_is_continued_by_whichever_process_of_the_next_run(
    archive: Path,
) -> None:
    large = b"\xff\xd8\xff" + bytes(2**20)
    mark = Mark(etag='"e"', generation="1", total=3 * len(large), crc32c="AAAAAA==", md5=None)

    async def break_off(opened: LocalArchive) -> None:
        async with opened.stage(PLACE) as stage:
            stage.begin(mark)
            await stage.write(large)
            raise ConnectionFailedError("broken")

    def joined(first: LocalArchive, run_id: str, number: int) -> Any:
        assert first.writer is not None
        return LocalArchive.join(
            str(archive), run_id, IDENTITY, first.writer, number, durable=False
        )

    with (
        LocalArchive.open(str(archive), "run-a1", IDENTITY, is_joined=True) as first,
        joined(first, "run-a1", 2) as second,
    ):
        with pytest.raises(ConnectionFailedError):
            await break_off(second)
        # In the same run nobody else takes it up.
        assert first.stage(PLACE).kept is None
        with joined(first, "run-a1", 3) as third:
            assert third.stage(PLACE).kept is None
    with (
        LocalArchive.open(str(archive), "run-b2", IDENTITY, is_joined=True) as first,
        joined(first, "run-b2", 2) as second,
        joined(first, "run-b2", 3) as third,
    ):
        assert third.stage(PLACE).kept is not None
        assert second.stage(PLACE).kept is None
    with LocalArchive.open(str(archive), "run-c3", IDENTITY) as alone:
        kept = alone.stage(PLACE).kept
        assert kept is not None
        assert kept.size == len(large)


def test_a_helper_has_no_secret_and_loads_nothing_from_the_current_directory(
    serve: Serve, tmp_path: Path, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=200, storage_latency_s=0.1)
    write_manifest(manifest, list(simulator.patient_ids()))
    trap = tmp_path / "here"
    trap.mkdir()
    for name in ("aiohttp", "bulkfetch", "pickle"):
        (trap / f"{name}.py").write_text("raise SystemExit('taken in')\n", encoding="utf-8")
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("bulkfetch"), "download", manifest, "--out", archive,
            "--processes=2", "--progress=none", "--json",
        ],
        cwd=trap, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={
            **os.environ, **credentials(simulator), "bulkfetch_storage_host": "stranger.invalid"
        },
    )  # fmt: skip
    wait_for_journals(archive, process)
    (helper,) = helpers_of(process)
    # What the settings read, whatever its case, is not passed on.
    for name in ("environ", "cmdline"):
        told = Path(f"/proc/{helper}/{name}").read_bytes()
        assert simulator.config.client_secret.encode() not in told
        assert b"stranger" not in told
    result = ended(process)
    assert result.status == 0, result.err


def test_what_a_helper_has_to_say_is_said_by_the_first_process(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=60, faults=(parse_fault("storage:403"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(
        simulator, manifest, archive, "--processes=2", "--log-format=json", "--retries=0"
    )
    assert result.status == 1
    said = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    images = {line["message"].split()[1] for line in said if line["message"].startswith("image ")}
    assert len(images) == result.summary["images"]["failed"]
    assert "Signature" not in result.err


async def test_a_program_may_use_several_processes(
    serve: Serve, manifest: Path, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulator = serve(patients=30, faults=(parse_fault("storage:404@20%"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    settings = settings_for(simulator, archive, 2)
    with caplog.at_level(logging.WARNING):
        summary = await download_async(manifest, settings)
    assert summary.patients.total == 30
    assert len([r for r in caplog.records if r.getMessage().startswith("image ")]) == (
        summary.images.failed
    )


@pytest.mark.parametrize("what", ["program", "socket", "thread"])
async def test_a_run_goes_on_by_itself_where_no_further_process_can_be_started(
    serve: Serve,
    manifest: Path,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    what: str,
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    if what == "program":
        monkeypatch.setattr(sys, "executable", str(archive / "nowhere"))
    elif what == "socket":
        monkeypatch.setattr(socket, "socketpair", Mock(side_effect=OSError(24, "too many")))
    else:
        refused = Mock(side_effect=RuntimeError("can't start new thread"))
        monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    summary = await download_async(manifest, settings_for(simulator, archive, 3))
    assert summary.exit_code == 0
    intact(simulator, archive)
    assert caplog.text.count("no further process could be started") == 2


def every_error() -> Iterator[type[FetchError]]:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if issubclass(kind, FetchError):
            yield kind


def test_every_error_can_be_copied_and_sent_to_another_process() -> None:
    made: list[FetchError] = []
    for kind in every_error():
        if kind is StatusError:
            made.append(StatusError("what", 503, 2.5))
        elif kind is errors.BadResponseError:
            made.append(kind("what", retryable=True))
        else:
            made.append(kind("what"))
    for error in made:
        for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(twin) is type(error)
            assert str(twin) == str(error)
            assert vars(twin) == vars(error)
            assert (twin.kind, twin.retryable) == (error.kind, error.retryable)


def test_settings_for_a_helper_hold_no_credentials(tmp_path: Path) -> None:
    settings = Settings(out="archive", client_id="me", client_secret=SecretStr("hush"), processes=2)
    sent = pickle.dumps(without_credentials(settings))
    assert b"hush" not in sent
    again = pickle.loads(sent)
    assert again.query_concurrency == settings.query_concurrency
