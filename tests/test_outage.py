"""A service in trouble: left alone, asked carefully, and never hammered."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bulkfetch.breaker import FAILURES_IN_A_ROW
from bulkfetch.retry import FIRST_RETRIES, RETRIES_PER_SUCCESS
from bulkfetch.simulator import Fault, Simulator, parse_fault
from tests.conftest import (
    Result,
    Serve,
    credentials,
    download,
    start_bulkfetch,
    write_manifest,
)
from tests.faulty import all_but_the_first, balance, failures, intact, listed, uploaded

LONGEST_TEST_S = 60


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "patients.csv"


def started(
    simulator: Simulator, manifest: Path, archive: Path, *options: str
) -> subprocess.Popen[bytes]:
    return start_bulkfetch(
        ["download", manifest, "--out", archive, "--json", *options], credentials(simulator)
    )


def ended(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=LONGEST_TEST_S)
    return Result(process.returncode, out.decode(), err.decode())


def wait_until(process: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_TEST_S
    while not holds():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("target", "fault", "service"),
    [("storage", "503=1", "the storage"), ("images", "429=1", "the API")],
)
def test_an_outage_is_waited_for_with_single_probes_and_costs_no_image(
    serve: Serve,
    tmp_path: Path,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    target: str,
    fault: str,
    service: str,
) -> None:
    # The latency makes failures come together, and Retry-After keeps each item from its second
    # and last try until all have failed once.
    simulator = serve(patients=50, api_latency_s=0.2, storage_latency_s=0.2)
    all_but_the_first(monkeypatch, simulator)
    simulator.faults.add(parse_fault(f"{target}:{fault}"))
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    with started(
        simulator, manifest, archive, "--retries=1", "--progress=plain", "--query-concurrency=32"
    ) as process:

        def hits() -> int:
            return sum(r.endpoint == target and r.status in (503, 429) for r in simulator.log)

        wait_until(process, lambda: hits() >= FAILURES_IN_A_ROW)
        # All that was in flight has come back, and the first probe has been made.
        time.sleep(1)
        before = hits()
        wait_until(process, lambda: hits() > before)
        probes = hits() - before
        time.sleep(1.5)
        assert hits() - before == probes == 1
        simulator.faults.clear()
        result = ended(process)

    assert result.status == 0, result.err
    assert "Traceback" not in result.err
    balance(result.summary)
    intact(simulator, archive)
    assert before <= 50  # one try for each patient at most
    assert "failures in a row" in result.err
    assert "leaving it alone" in result.err
    assert f"{service} is failing: paused for" in result.err
    assert f"{service} is well again" in result.err


@pytest.mark.parametrize(("target", "kind"), [("storage", "503"), ("images", "drop")])
def test_an_outage_that_lasts_longer_than_max_outage_ends_the_run_in_order(
    serve: Serve,
    tmp_path: Path,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    target: str,
    kind: str,
) -> None:
    simulator = serve(patients=80)
    all_but_the_first(monkeypatch, simulator)
    simulator.faults.add(parse_fault(f"{target}:{kind}"))
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(
        simulator, manifest, archive, "--retries=3", "--max-outage=1", "--download-concurrency=8"
    )
    assert result.status == result.summary["exit_code"] == 1
    assert "Traceback" not in result.err
    assert "has been failing for" in result.err
    balance(result.summary)
    intact(simulator, archive, complete=False)
    assert result.summary["patients"]["not_reached"] > 0
    rows = failures(archive, result.summary["run_id"])
    assert "service_down" in {row["bulkfetch_kind"] for row in rows}
    assert len(rows) == result.summary["patients"]["failed"]
    assert simulator.requests[target] < 4 * FAILURES_IN_A_ROW

    simulator.faults.clear()
    assert download(simulator, manifest, archive).status == 0
    intact(simulator, archive)


def test_fewer_queries_are_in_flight_while_the_api_throttles_and_more_again_after(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=400, images_per_patient=0, api_latency_s=0.02)
    strike = simulator.faults.strike
    in_flight: list[int] = []

    def seen(target: str, resource: str) -> list[Fault]:
        if target == "images":
            in_flight.append(simulator._traffic._in_flight["images"])
            if len(in_flight) == 60:
                simulator.faults.add(parse_fault("images:429@50%"))
            if len(in_flight) == 220:
                simulator.faults.clear()
        return strike(target, resource)

    monkeypatch.setattr(simulator.faults, "strike", seen)
    write_manifest(manifest, list(simulator.patient_ids()))
    options = ("--query-concurrency=16", "--retries=30", "--processes=1")
    result = download(simulator, manifest, tmp_path / "archive", *options)
    assert result.status == 0, result.err
    assert max(in_flight[20:60]) == 16
    assert max(in_flight[100:220]) <= 8
    assert max(in_flight[-100:]) >= 12
    assert max(in_flight) <= 16


def test_an_api_that_is_over_its_limit_is_given_time_until_all_is_there(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=40, rate_limit=20)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, "--query-concurrency=16")
    assert result.status == 0, result.err
    intact(simulator, archive)
    assert result.summary["retries"] > 0


def test_with_the_rate_limit_option_an_api_is_never_over_its_limit(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=60, rate_limit=25)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, "--query-concurrency=16", "--rate-limit=20")
    assert result.status == 0, result.err
    intact(simulator, archive)
    assert 429 not in {record.status for record in simulator.log}


def test_the_retry_budget_never_bites_where_a_third_of_all_requests_fails(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(
        patients=190, faults=(parse_fault("storage:500@30%x3"), parse_fault("images:500@30%x3"))
    )
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive)
    assert result.status == 0, result.err
    intact(simulator, archive)
    assert result.summary["retries"] > FIRST_RETRIES


def test_a_service_that_answers_with_rubbish_alone_is_not_hammered(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=100, faults=(parse_fault("storage:empty"),))
    count = len(uploaded(simulator))
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, "--retries=4", "--download-concurrency=200")
    assert result.status == 1
    balance(result.summary)
    assert result.summary["images"]["failed"] == count
    most = FIRST_RETRIES + RETRIES_PER_SUCCESS * 100
    assert simulator.requests["storage"] <= count + most < 5 * count
    assert len(listed(simulator)) == result.summary["images"]["listed"]


def test_tokens_of_a_short_life_are_asked_for_one_at_a_time(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=120, token_lifetime_s=1, api_latency_s=0.2)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, "--query-concurrency=8")
    assert result.status == 0, result.err
    intact(simulator, archive)
    assert simulator.requests["token"] > 1
    assert simulator.peak_in_flight["token"] == 1
