"""Ctrl-C and SIGTERM: an orderly end, a summary, and a run that goes on from there."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bulkfetch import Settings, Summary
from bulkfetch.cli import running
from bulkfetch.manifest import Manifest
from bulkfetch.pipeline import Run
from bulkfetch.progress import NoProgress
from bulkfetch.simulator import Simulator, parse_fault
from tests.conftest import (
    Result,
    Serve,
    credentials,
    download,
    sidecars,
    start_bulkfetch,
    write_manifest,
)


def interrupted(
    simulator: Simulator, manifest: Path, archive: Path, *signals: signal.Signals
) -> Result:
    """Send signals once files arrive, and wait for the end."""
    arguments: list[str | Path] = ["download", manifest, "--out", archive, "--json"]
    process = start_bulkfetch(arguments, credentials(simulator))
    wait_for_storage(simulator, process)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    out, err = process.communicate(timeout=10)
    return Result(process.returncode, out.decode(), err.decode())


def wait_for_storage(simulator: Simulator, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while simulator.requests["storage"] < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_what_is_in_flight_end_and_writes_the_summary(
    serve: Serve, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    simulator = serve(patients=400, storage_latency_s=0.1)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = interrupted(simulator, manifest, archive, number)

    assert result.status == status, result.err
    assert "Traceback" not in result.err
    summary = result.summary
    assert summary["interrupted"]
    assert summary["exit_code"] == status
    assert summary["patients"]["not_reached"] > 0
    assert sum(summary["patients"].values()) == 2 * summary["patients"]["total"]
    assert sum(summary["images"].values()) == 2 * summary["images"]["listed"]
    (written,) = archive.glob(".bulkfetch/runs/*/summary.json")
    assert json.loads(written.read_bytes()) == summary
    done = {k for k, s in sidecars(archive).items() if s["outcome"] == "downloaded"}
    assert len(done) == summary["images"]["downloaded"] > 0
    assert not list(archive.glob("*/.*.part"))

    again = download(simulator, manifest, archive)
    assert again.status == 0
    assert again.summary["images"]["unchanged"] == len(done)


def test_the_second_signal_ends_the_run_at_once(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=100, faults=(parse_fault("storage:stall=60@90%"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    result = interrupted(simulator, manifest, tmp_path / "archive", signal.SIGINT, signal.SIGINT)
    assert result.status == 130
    assert "Traceback" not in result.err
    assert result.summary["images"]["not_reached"] > 0
    assert not list((tmp_path / "archive").glob("*/.*.part"))


def test_a_stalled_body_does_not_hold_the_end_up(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=100, faults=(parse_fault("storage:stall=60@90%"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    result = interrupted(simulator, manifest, tmp_path / "archive", signal.SIGTERM)
    assert result.status == 143
    assert result.summary["images"]["not_reached"] > 0


def test_a_signal_before_anything_was_fetched_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(api_latency_s=30)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    process = start_bulkfetch(
        ["download", manifest, "--out", tmp_path / "archive"], credentials(simulator)
    )
    deadline = time.monotonic() + 120
    while not simulator.requests["token"] + simulator.requests["images"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert not (tmp_path / "archive").exists()


def test_what_a_run_told_of_its_end_stays_true_when_it_is_interrupted_afterwards(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve()
    for name, value in credentials(simulator).items():
        monkeypatch.setenv(name, value)
    path = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))

    class Late(NoProgress):
        def close(self) -> None:
            # The last but one thing that a run does.
            asyncio.get_running_loop().call_soon(run.interrupt, 130)

    with Manifest(path) as manifest:
        settings = Settings(out=tmp_path / "archive")
        run = Run(manifest, manifest.check(), settings, progress=Late())
        summary = asyncio.run(running.do(run))
    assert isinstance(summary, Summary)
    assert summary.exit_code == 0
