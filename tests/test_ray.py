"""A run on a cluster: bounds that are the run's, nodes that die, one archive that verifies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bulkfetch.simulator import Simulator, parse_fault
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    start_bulkfetch,
    with_mounts_of_its_own,
    write_manifest,
)
from tests.faulty import balance, failures, intact, whole
from tests.raycluster import RayCluster, ray_cluster
from tests.stores import Bucket

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster for all: the tests' processes are as many as there are cores."""
    if "PYTEST_XDIST_TESTRUNUID" in os.environ:
        (tmp_path_factory.getbasetemp().parent / "has-a-cluster").touch(exist_ok=False)
    with ray_cluster() as made:
        yield made


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "patients.csv"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(cluster: RayCluster, manifest: Path, archive: Path) -> Iterator[Start]:
    """Start the main job on the cluster, over a manifest of all that a simulator has."""
    running: list[subprocess.Popen[bytes]] = []

    def started(simulator: Simulator, *options: str) -> subprocess.Popen[bytes]:
        write_manifest(manifest, list(simulator.patient_ids()))
        command: list[str | Path] = ["download", manifest, "--out", archive, "--engine=ray",
            f"--ray-address={cluster.address}", "--progress=none", "--json", *options]  # fmt: skip
        running.append(start_bulkfetch(command, {**credentials(simulator), **cluster.credentials}))
        return running[-1]

    yield started
    for process in running:
        process.kill()
        with process:
            pass


def ended(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=200)
    assert b"Traceback" not in err
    return Result(process.returncode, out.decode(), err.decode())


def events(archive: Path) -> list[dict[str, Any]]:
    """Every whole line of every journal."""
    paths = sorted(archive.glob(".bulkfetch/runs/*/journal*.jsonl"))
    lines = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def wait_for_patients(archive: Path, process: subprocess.Popen[bytes], workers: int = 2) -> None:
    """Wait until so many workers have noted that a patient ended."""
    deadline = time.monotonic() + 120
    while len([path for path in archive.glob(".bulkfetch/runs/*/journal-*.jsonl")
               if b'"patient"' in path.read_bytes()]) < workers:  # fmt: skip
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(cluster: RayCluster) -> list[int]:
    """The processes of the cluster that are a run's workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            pid = int(path.parent.name)
            if path.read_bytes().startswith(b"ray::Actor") and os.getsid(pid) in cluster.sessions:
                found.append(pid)
    return found


def verified(archive: Path, manifest: Path) -> None:
    result = bulkfetch("verify", archive, "--manifest", manifest)
    assert result.status == 0, result.err


# Prints how many outcomes of each type were told, then the sums.
_TELLING = """
import asyncio, collections, json, sys
from bulkfetch import Settings, Summary, run
async def main():
    settings = Settings(out=sys.argv[2], engine="ray", ray_address=sys.argv[3])
    told = [outcome async for outcome in run(sys.argv[1], settings)]
    print(json.dumps(collections.Counter(type(outcome).__name__ for outcome in told)))
    print(told[-1].model_dump_json())
asyncio.run(main())
"""


def test_a_program_hears_of_each_end_on_every_node(
    cluster: RayCluster, serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=40)
    write_manifest(manifest, list(simulator.patient_ids()))
    command = [sys.executable, "-c", _TELLING, str(manifest), str(archive), cluster.address]
    environment = {**os.environ, **credentials(simulator), **cluster.credentials}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    told, sums = done.stdout.decode().splitlines()[-2:]
    listed = json.loads(sums)["images"]["listed"]
    assert json.loads(told) == {"ImageEnded": listed, "PatientEnded": 40, "Summary": 1}


def test_two_workers_make_one_whole_archive_within_the_run_s_bounds(
    start: Start, serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=150, api_latency_s=0.03, storage_latency_s=0.05)
    bounds = ("--query-concurrency=5", "--download-concurrency=7")
    result = ended(start(simulator, *bounds))
    assert result.status == 0, result.err
    assert len(result.out.splitlines()) == 1
    balance(result.summary)
    assert result.summary["patients"]["total"] == 150
    intact(simulator, archive)
    verified(archive, manifest)
    assert 3 < simulator.peak_in_flight["images"] <= 5
    assert 3 < simulator.peak_in_flight["storage"] <= 7
    assert simulator.requests["token"] == 1
    patients = Counter(e["patient_id"] for e in events(archive) if e["event"] == "patient")
    assert set(patients.values()) == {1}
    names = {path.name for path in archive.glob(".bulkfetch/runs/*/journal*.jsonl")}
    assert names == {"journal.jsonl", "journal-2.jsonl", "journal-3.jsonl"}


def test_a_node_that_dies_costs_nothing_and_its_patients_are_seen_to_elsewhere(
    cluster: RayCluster, start: Start, serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.3)
    process = start(simulator)
    wait_for_patients(archive, process)
    cluster.kill_node()
    try:
        result = ended(process)
    finally:
        cluster.add_node()
    assert result.status == 0, result.err
    assert "is gone" in result.err
    balance(result.summary)
    assert result.summary["patients"]["failed"] == result.summary["patients"]["not_reached"] == 0
    expected = sum(len(simulator.expected_images(p)) for p in simulator.patient_ids())
    assert result.summary["images"]["listed"] == expected
    verified(archive, manifest)


def test_a_patient_that_takes_three_workers_along_has_failed(
    cluster: RayCluster, start: Start, serve: Serve, archive: Path
) -> None:
    simulator = serve(patients=4)
    simulator.faults.add(parse_fault("storage:latency=600"))
    process = start(simulator, "--ray-workers=1")
    # The first question is the first process's own.
    asked = 1
    for _ in range(3):
        deadline = time.monotonic() + 120
        while simulator.requests["images"] <= asked:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        asked = simulator.requests["images"]
        for worker in workers_of(cluster):
            os.kill(worker, signal.SIGKILL)
    result = ended(process)
    assert result.status == 1, result.err
    balance(result.summary)
    lost = failures(archive, result.summary["run_id"])
    assert {row["bulkfetch_kind"] for row in lost} == {"process_died"}
    assert len(lost) == result.summary["patients"]["failed"] > 0
    assert result.summary["patients"]["not_reached"] == 0
    simulator.faults.clear()


def test_when_the_first_process_is_killed_its_workers_end_and_the_same_command_goes_on(
    cluster: RayCluster, start: Start, serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=400, storage_latency_s=0.3)
    process = start(simulator)
    wait_for_patients(archive, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while workers_of(cluster):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    whole(archive)
    result = ended(start(simulator))
    assert result.status == 0, result.err
    balance(result.summary)
    assert result.summary["images"]["unchanged"] > 0
    intact(simulator, archive)
    verified(archive, manifest)


def test_ctrl_c_finishes_what_is_in_flight_and_the_same_command_goes_on(
    start: Start, serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=300, storage_latency_s=0.2)
    process = start(simulator)
    wait_for_patients(archive, process)
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.status == 130, result.err
    balance(result.summary)
    assert result.summary["interrupted"]
    assert result.summary["patients"]["not_reached"] > 0
    intact(simulator, archive, complete=False)
    again = ended(start(simulator))
    assert again.status == 0, again.err
    assert again.summary["images"]["unchanged"] >= result.summary["images"]["downloaded"]
    verified(archive, manifest)


def test_the_rate_limit_is_that_of_the_run(start: Start, serve: Serve) -> None:
    simulator = serve(patients=60, rate_limit=25)
    result = ended(start(simulator, "--rate-limit=20"))
    assert result.status == 0, result.err
    assert 429 not in {record.status for record in simulator.log}
    assert result.summary["retries"] == 0


def test_nothing_secret_is_in_what_the_cluster_writes(
    cluster: RayCluster, start: Start, serve: Serve
) -> None:
    simulator = serve(patients=40, faults=(parse_fault("storage:500@20%"),))
    result = ended(start(simulator, "--log-level=debug", "--retries=1"))
    assert result.status in (0, 1), result.err
    assert result.summary["retries"] > 0
    written = b"".join(p.read_bytes() for p in cluster.directory.rglob("*") if p.is_file())
    assert written
    secrets = (simulator.config.client_secret, "X-Goog-Signature", "X-Goog-Credential", "eyJ")
    told = [secret for secret in secrets if secret.encode() in written or secret in result.err]
    assert not told


def test_a_wrong_address_is_told_before_anything_is_made(
    serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=2)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = bulkfetch(
        "download", manifest, "--out", archive, "--engine=ray", "--ray-address=127.0.0.1:9",
        environment=credentials(simulator),
    )  # fmt: skip
    assert result.status == 2
    assert "no Ray cluster answers at 127.0.0.1:9" in result.err
    assert not archive.exists()


@pytest.mark.parametrize(
    "options", [("--ray-workers=2",), ("--ray-address=local",), ("--engine=ray", "--processes=2")]
)
def test_options_of_the_other_engine_are_refused(
    serve: Serve, manifest: Path, archive: Path, options: tuple[str, ...]
) -> None:
    simulator = serve(patients=2)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = bulkfetch(
        "download", manifest, "--out", archive, *options, environment=credentials(simulator)
    )
    assert result.status == 2
    assert "--engine" in result.err
    assert not archive.exists()


def test_a_node_that_does_not_see_the_destination_ends_the_run(
    cluster: RayCluster, serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=4)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive.mkdir()
    within = with_mounts_of_its_own(f'mount -t tmpfs none {archive} && exec "$@"')
    result = bulkfetch(
        "download", manifest, "--out", archive, "--engine=ray", "--progress=none",
        f"--ray-address={cluster.address}", within=within,
        environment={**credentials(simulator), **cluster.credentials},
    )  # fmt: skip
    assert result.status == 4, result.err
    assert "is not the archive that this run began" in result.err
    assert not list(archive.iterdir())


def test_a_node_with_other_versions_ends_the_run(
    cluster: RayCluster, serve: Serve, manifest: Path, archive: Path
) -> None:
    simulator = serve(patients=4)
    write_manifest(manifest, list(simulator.patient_ids()))
    other = (
        "import sys; from bulkfetch.pipeline import cluster; from bulkfetch.cli import main; "
        "cluster.VERSIONS = 'bulkfetch 0.0, Python 3.9'; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", other, "download", str(manifest), "--out", str(archive),
         "--engine=ray", f"--ray-address={cluster.address}", "--progress=none"],
        env={**os.environ, **credentials(simulator), **cluster.credentials},
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert b"install the same on all of them" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_cluster_s_workers_write_into_a_bucket(
    serve: Serve, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, manifest: Path
) -> None:
    bucket.export(monkeypatch)
    # A cluster of the run's own, whose nodes have what reaches the bucket from its environment.
    simulator = serve(patients=40)
    write_manifest(manifest, list(simulator.patient_ids()))
    out = f"{bucket.url}/export"
    options = ["--engine=ray", "--ray-address=local", "--progress=none", "--json"]
    result = bulkfetch(
        "download", manifest, "--out", out, *options, environment=credentials(simulator)
    )
    assert result.status == 0, result.err
    balance(result.summary)
    journals = [path for path in bucket.contents() if "/journal-" in path]
    assert journals
    checked = bulkfetch("verify", out, "--manifest", manifest)
    assert checked.status == 0, checked.out + checked.err
