"""Full disks, few open files, planted links, other runs, killed runs, a private authority."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bulkfetch.simulator import Simulator, parse_fault
from tests.conftest import (
    Serve,
    bulkfetch,
    credentials,
    download,
    sidecars,
    start_bulkfetch,
    with_mounts_of_its_own,
    write_manifest,
)
from tests.faulty import balance, failures, intact, listed, uploaded, whole


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "patients.csv"


def on_small_disk(disk: Path, copy: Path, filler_bytes: int = 0) -> list[str]:
    """A command that runs another with an 8 MiB disk, which nobody else sees, and copies it."""
    script = (
        f'mount -t tmpfs -o size=8m none "{disk}" && '
        f'head -c {filler_bytes} /dev/zero >"{disk}/filler" && '
        f'{{ "$@"; status=$?; cp -a "{disk}/." "{copy}"; exit $status; }}'
    )
    return with_mounts_of_its_own(script)


@pytest.mark.parametrize("size", [150_000, 3_000_000])
def test_a_full_disk_ends_the_run_in_order_and_the_next_one_goes_on(
    serve: Serve, tmp_path: Path, manifest: Path, size: int
) -> None:
    simulator = serve(patients=40, fixed_bytes=size)
    write_manifest(manifest, list(simulator.patient_ids()))
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    copy.mkdir()
    result = download(simulator, manifest, disk / "archive", within=on_small_disk(disk, copy))

    assert result.status == 4, result.err
    assert "Traceback" not in result.err
    assert "full" in result.err or "No space left" in result.err
    balance(result.summary)
    assert result.summary["exit_code"] == 4
    assert result.summary["patients"]["not_reached"] > 0
    archive = copy / "archive"
    before = whole(archive)
    if size < 10**6:
        assert before > 10

    if size < 10**6:
        again = download(simulator, manifest, archive)
        assert again.status == 0, again.err
        intact(simulator, archive)


def test_a_disk_that_is_nearly_full_is_said_before_a_byte_is_fetched(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    copy.mkdir()
    within = on_small_disk(disk, copy, 8_100_000)
    result = download(simulator, manifest, disk / "archive", within=within)
    assert result.status == 4, result.err
    assert "Traceback" not in result.err
    assert "is full" in result.err
    assert not simulator.requests["storage"]


def test_few_open_files_are_said_and_done_with(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=60)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, within=["prlimit", "--nofile=100:100"])
    assert result.status == 0, result.err
    assert "only 100 files may be open at once" in result.err
    intact(simulator, archive)


def started(simulator: Simulator, manifest: Path, archive: Path) -> subprocess.Popen[bytes]:
    process = start_bulkfetch(["download", manifest, "--out", archive], credentials(simulator))
    deadline = time.monotonic() + 120
    while not list(archive.glob("[!.]*/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_second_run_is_told_who_holds_the_archive_and_a_killed_one_holds_nothing(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=30, faults=(parse_fault("storage:stall=60@50%x1"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    with started(simulator, manifest, archive) as first:
        second = download(simulator, manifest, archive)
        first.send_signal(signal.SIGKILL)
    assert second.status == 4
    assert f"process {first.pid}" in second.err
    (run,) = (path.name for path in archive.glob(".bulkfetch/runs/*"))
    assert f"run {run}" in second.err
    whole(archive)

    simulator.faults.clear()
    third = download(simulator, manifest, archive)
    assert third.status == 0, third.err
    intact(simulator, archive)


def test_ids_that_point_out_of_the_archive_stay_in_it(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=3)
    names = ["../../../evil", "/etc/evil", "..", "CON", "a/b", "A", "a", "e\u0301", "\u00e9"]
    images = [key[0] for key in uploaded(simulator)]
    for image_id, name in zip(images, names, strict=False):
        simulator.patch_image(image_id, id=name, patient={"id": name, "notes": None})
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "below" / "archive"
    result = download(simulator, manifest, archive)
    assert result.status == 0, result.err
    found = sidecars(archive)
    assert {key[0] for key in found} >= set(names)
    assert len({str(path).casefold() for path in archive.rglob("*")}) == len(
        list(archive.rglob("*"))
    )
    assert whole(archive) == len(listed(simulator))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below", "patients.csv"]
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["archive"]


def test_a_planted_link_is_not_followed_and_fails_its_patient_alone(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=5)
    patient_id = next(p for p in simulator.patient_ids() if simulator.expected_images(p))
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / patient_id).symlink_to(outside)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, archive)
    assert result.status == 1, result.err
    assert "Traceback" not in result.err
    assert not list(outside.iterdir())
    (row,) = failures(archive, result.summary["run_id"])
    assert (row["patient_id"], row["bulkfetch_kind"]) == (patient_id, "path_refused")
    assert result.summary["patients"]["failed"] == 1
    assert not result.summary["patients"]["not_reached"]


def test_an_api_of_a_private_authority_is_trusted_by_ca_file_alone(
    wrapped: tuple[Simulator, str], authority: Path, tmp_path: Path, manifest: Path
) -> None:
    simulator, url = wrapped
    write_manifest(manifest, list(simulator.patient_ids()))
    environment = {**credentials(simulator), "BULKFETCH_API_URL": url}
    arguments: list[str | Path] = ["download", manifest, "--out", tmp_path / "archive"]
    without = bulkfetch(*arguments, environment=environment)
    assert without.status == 1
    assert "certificate" in without.err
    assert not simulator.requests
    result = bulkfetch(*arguments, "--ca-file", authority, environment=environment)
    assert result.status == 0, result.err
    intact(simulator, tmp_path / "archive")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_is_none_is_status_2(
    serve: Serve, tmp_path: Path, manifest: Path, content: str | None
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    result = download(simulator, manifest, tmp_path / "archive", "--ca-file", file)
    assert result.status == 2, result.err
    assert "--ca-file" in result.err
    assert "Traceback" not in result.err
    assert not simulator.requests


def test_a_killed_run_leaves_what_the_next_one_finishes(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=120, storage_latency_s=0.02)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    for _ in range(3):
        before = len(sidecars(archive)) if archive.exists() else 0
        process = start_bulkfetch(
            ["download", manifest, "--out", archive, "--download-concurrency=4"],
            credentials(simulator),
        )
        deadline = time.monotonic() + 120
        while len(list(archive.glob("[!.]*/*.json"))) < before + 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert whole(archive) >= before + 20
    result = download(simulator, manifest, archive)
    assert result.status == 0, result.err
    images = result.summary["images"]
    assert images["unchanged"] + images["not_uploaded"] >= 60
    intact(simulator, archive)
    assert not failures(archive, result.summary["run_id"])
