"""Shares of a manifest, each fetched by a job of its own into one archive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkfetch.archive import Identity, LocalArchive
from bulkfetch.errors import DestinationError
from bulkfetch.models import Shard
from bulkfetch.simulator import Simulator, parse_fault
from tests.conftest import (
    Serve,
    credentials,
    download,
    sidecars,
    start_bulkfetch,
    write_manifest,
)
from tests.faulty import balance, intact, whole

IDENTITY = Identity(api_host="127.0.0.1")


@given(st.text(min_size=1), st.integers(1, 50))
def test_a_row_belongs_to_exactly_one_share(patient_id: str, count: int) -> None:
    shares = [Shard(number, count) for number in range(1, count + 1)]
    assert sum(share.holds(patient_id, "c") for share in shares) == 1
    # A patient's rows stay together, with a coverage or without.
    assert [s.holds(patient_id, None) for s in shares] == [s.holds(patient_id, "c") for s in shares]


def test_the_shares_never_change() -> None:
    # Another hash would have the jobs of a later version fetch other rows.
    ids = [f"patient-{n}" for n in range(12)]
    shares = [next(i for i in (1, 2, 3) if Shard(i, 3).holds(p, None)) for p in ids]
    assert shares == [3, 3, 1, 2, 3, 1, 3, 2, 2, 3, 2, 2]


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", "1 /2", "²/3", f"1/{'9' * 30}"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be I/N"):
        Shard.parse(text)


@pytest.mark.parametrize("option", ["--shard=3/2", "--path-template={patient_id}"])
def test_a_wrong_share_or_template_is_status_2_and_makes_nothing(
    serve: Serve, tmp_path: Path, option: str
) -> None:
    simulator = serve(patients=1)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", option)
    assert result.status == 2
    assert option.partition("=")[0] in result.err
    assert not (tmp_path / "archive").exists()
    assert not simulator.requests


def test_an_archive_follows_its_template_and_refuses_another(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=20)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    option = "--path-template={patient_hash}/{patient_id}/side={side}/{image_id}.v{version}"
    first = download(simulator, manifest, archive, option)
    assert first.status == 0, first.err
    images = [path for path in archive.glob("[!.]*/*/side=*/*") if path.suffix != ".json"]
    assert len(images) == first.summary["images"]["downloaded"] > 10
    assert not list(archive.glob("[!.]*/*.*"))
    again = download(simulator, manifest, archive, option)
    assert again.summary["images"]["downloaded"] == 0
    images[0].write_bytes(b"damaged")
    repaired = download(simulator, manifest, archive, option)
    assert repaired.summary["images"]["downloaded"] == 1
    assert list(archive.glob(f".bulkfetch/quarantine/*/*/*/side=*/{images[0].name}"))
    other = download(simulator, manifest, archive)
    assert other.status == 2
    assert "path template" in other.err


def test_shards_side_by_side_make_one_whole_archive(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=60, storage_latency_s=0.02)
    patients = list(simulator.patient_ids())
    manifest = write_manifest(tmp_path / "patients.csv", patients)
    archive = tmp_path / "archive"
    jobs = [started(simulator, manifest, archive, f"--shard={n}/3", "--json") for n in (1, 2, 3)]
    summaries = []
    for job in jobs:
        out, err = job.communicate(timeout=60)
        assert job.returncode == 0, err.decode()
        summaries.append(json.loads(out))
    for number, summary in enumerate(summaries, 1):
        balance(summary)
        assert summary["shard"] == f"{number}/3"
        assert 0 < summary["patients"]["total"] < 60
    assert sum(summary["patients"]["total"] for summary in summaries) == 60
    intact(simulator, archive)
    assert not list(archive.rglob("*.part"))
    # The whole finds it as if it had made it.
    result = download(simulator, manifest, archive)
    assert result.status == 0, result.err
    assert result.summary["images"]["downloaded"] == 0
    assert result.summary["patients"]["total"] == 60


def test_a_share_without_rows_is_a_success(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=1)
    (patient,) = simulator.patient_ids()
    manifest = write_manifest(tmp_path / "patients.csv", [patient])
    totals = []
    for number in (1, 2):
        result = download(simulator, manifest, tmp_path / "archive", f"--shard={number}/2")
        assert result.status == 0, result.err
        totals.append(result.summary["patients"]["total"])
    assert sorted(totals) == [0, 1]


def started(
    simulator: Simulator, manifest: Path, archive: Path, *options: str
) -> subprocess.Popen[bytes]:
    return start_bulkfetch(
        ["download", manifest, "--out", archive, "--progress=none", *options],
        credentials(simulator),
    )


def test_what_would_write_to_the_same_share_is_refused_while_a_shard_runs(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=40, faults=(parse_fault("storage:stall=60@50%x1"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    with started(simulator, manifest, archive, "--shard=1/2") as first:
        deadline = time.monotonic() + 20
        while not list(archive.glob("[!.]*/*.json")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for options in (["--shard=1/2"], ["--shard=1/3"], []):
            result = download(simulator, manifest, archive, *options)
            assert result.status == 4, (options, result.err)
            assert f"process {first.pid}" in result.err or not options
        simulator.faults.clear()
        beside = download(simulator, manifest, archive, "--shard=2/2")
        assert beside.status == 0, beside.err
        first.send_signal(signal.SIGKILL)
    whole(archive)
    # A dead shard holds nothing, and another number of shards takes over what it left.
    for number in (1, 2, 3):
        result = download(simulator, manifest, archive, f"--shard={number}/3")
        assert result.status == 0, result.err
    intact(simulator, archive)
    assert not list(archive.rglob("*.part"))
    assert sidecars(archive)


def leave(path: Path, text: str = "half") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def die(archive: Path, shard: Shard | None) -> None:
    """Have a process die while it holds an archive."""
    process = os.fork()
    if process == 0:
        with LocalArchive.open(str(archive), "run-dead", IDENTITY, shard=shard):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)


def test_each_clears_away_what_the_dead_left_but_for_what_a_neighbour_may_be_writing(
    tmp_path: Path,
) -> None:
    archive = tmp_path / "archive"
    for shard in (Shard(1, 2), Shard(2, 2)):
        die(archive, shard)
    leave(archive / ".bulkfetch" / "holder.json")
    of_the_whole = leave(archive / "p-1" / ".i-1.v1.json.part")
    of_the_first = leave(archive / "p-1" / ".i-1.v1.1-of-2.part")
    of_the_second = leave(archive / "p-1" / ".i-1.v1.2-of-2.part")
    image = leave(archive / "p-1" / "i-1.v1.jpg")
    with LocalArchive.open(str(archive), "run-1", IDENTITY, shard=Shard(1, 2)):
        assert not of_the_whole.exists()
        assert not of_the_first.exists()
        assert of_the_second.exists()
    with LocalArchive.open(str(archive), "run-2", IDENTITY):
        assert not of_the_second.exists()
    assert image.exists()
    assert not list((archive / ".bulkfetch").glob("holder*"))


def open_and_close(archive: Path) -> None:
    with LocalArchive.open(str(archive), "run-1", IDENTITY):
        pass


def test_a_run_that_dies_while_it_clears_away_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    die(archive, None)
    part = leave(archive / "p-1" / ".i-1.v1.part")
    old = time.time() - 3600
    os.utime(archive / ".bulkfetch" / "holder.json", (old, old))
    os.utime(part.parent, (old + 60, old + 60))
    sweep = "bulkfetch.archive.parts.Parts.sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, Mock(side_effect=OSError(5, "made to fail")))
        with pytest.raises(DestinationError, match="made to fail"):
            open_and_close(archive)
    assert part.exists()
    with LocalArchive.open(str(archive), "run-2", IDENTITY):
        assert not part.exists()
