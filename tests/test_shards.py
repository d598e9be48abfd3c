"""Shares of a manifest, each fetched by a job of its own into one archive."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkfetch.archive import Kept, Mark, commit, files
from bulkfetch.archive.local import LocalArchive
from bulkfetch.errors import ConnectionFailedError, DestinationError, TakenError
from bulkfetch.models import Shard
from bulkfetch.plan import Place
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
from tests.test_archive import IDENTITY, LARGE, PLACE, SMALL, held, names, put, sidecar_for


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
        out, err = job.communicate(timeout=120)
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


def test_a_file_in_the_place_of_a_templates_directory_fails_its_patient_alone(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=20)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    option = "--path-template={patient_hash}/{patient_id}/{image_id}.v{version}"
    first = download(simulator, manifest, archive, option)
    assert first.status == 0, first.err
    directory = next(path for path in archive.glob("[!.]*") if len(list(path.glob("*/*.json"))) > 1)
    shutil.rmtree(directory)
    directory.write_text("in the way", encoding="utf-8")
    result = download(simulator, manifest, archive, option)
    assert result.status == 1, result.err
    assert 1 <= result.summary["patients"]["failed"] < 10
    assert f"{directory.name} in the archive is a link or a file" in result.err


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
        deadline = time.monotonic() + 120
        while not list(archive.glob("[!.]*/*.json")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for options in (["--shard=1/2"], ["--shard=1/3"], []):
            result = download(simulator, manifest, archive, *options)
            assert result.status == 4, (options, result.err)
            assert f"process {first.pid}" in result.err or not options
            assert f"shard 1/2 of {archive} is held by another run (run " in result.err
            assert "wait for it to end; only other shards of 2 may run meanwhile" in result.err
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


def test_an_image_that_two_shards_list_is_archived_once(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=20, storage_latency_s=0.5)
    images = next(
        found
        for patient in simulator.patient_ids()
        if (found := [i for i in simulator.expected_images(patient) if uploaded_card(i)])
    )
    patient, coverage = str(images[0]["patient"]["id"]), str(images[0]["coverage"]["id"])
    shares = next(
        n for n in range(2, 20) if share_of(patient, None, n) != share_of(None, coverage, n)
    )
    manifest = tmp_path / "two.csv"
    manifest.write_text(f"patient_id,coverage_id\n{patient},\n,{coverage}\n", encoding="utf-8")
    archive = tmp_path / "archive"
    jobs = [
        started(simulator, manifest, archive, f"--shard={number}/{shares}", "--json")
        for number in (share_of(patient, None, shares), share_of(None, coverage, shares))
    ]
    downloaded = 0
    for job in jobs:
        out, err = job.communicate(timeout=120)
        assert job.returncode == 0, err.decode()
        summary = json.loads(out)
        balance(summary)
        downloaded += summary["images"]["downloaded"]
    whole(archive)
    assert downloaded == len([s for s in sidecars(archive).values() if s["file"]])


def uploaded_card(image: Mapping[str, Any]) -> bool:
    return bool(image["status"] == "UPLOADED" and image["coverage"] and image["patient"])


def share_of(patient_id: str | None, coverage_id: str | None, shares: int) -> int:
    numbers = range(1, shares + 1)
    return next(n for n in numbers if Shard(n, shares).holds(patient_id, coverage_id))


async def test_what_a_neighbour_archived_or_mended_is_neither_overwritten_nor_moved(
    tmp_path: Path,
) -> None:
    archive = str(tmp_path / "archive")
    with (
        LocalArchive.open(archive, "run-1", IDENTITY, shard=Shard(1, 2)) as one,
        LocalArchive.open(archive, "run-2", IDENTITY, shard=Shard(2, 2)) as other,
    ):
        await put(one, SMALL)
        (tmp_path / "archive" / PLACE.directory / PLACE.file("jpg")).write_bytes(b"damaged")
        assert (state := await held(one)) is not None
        assert state.damage
        # Both saw the damage, and the other was first to mend it.
        await other.quarantine(PLACE)
        await put(other, SMALL)
        with pytest.raises(TakenError):
            await one.quarantine(PLACE)
        with pytest.raises(TakenError):
            await put(one, SMALL)
        with pytest.raises(TakenError):
            await one.note(PLACE, 1, sidecar_for(PLACE, None))
        assert await held(one) == await held(other)
        assert names(tmp_path / "archive" / PLACE.directory) == {"i-1.v1.jpg", "i-1.v1.json"}
        assert not list((tmp_path / "archive" / ".bulkfetch" / "quarantine").glob("run-1/*/*"))


async def test_a_directory_that_a_neighbour_does_not_let_go_of_holds_up_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "WAIT_S", 0.5)
    root = tmp_path / "archive"
    with LocalArchive.open(str(root), "run-1", IDENTITY, shard=Shard(1, 2)) as archive:
        (root / "p-3").mkdir()
        with files.descriptor(root / "p-3") as directory, files.alone(directory):
            places = [Place(f"p-{n % 6}", f"i-{n}.v1") for n in range(12)]
            ends = await asyncio.gather(
                *(put(archive, SMALL, place) for place in places), return_exceptions=True
            )
    for place, end in zip(places, ends, strict=True):
        if place.directory == "p-3":
            assert isinstance(end, DestinationError)
            assert "another process" in str(end)
        else:
            assert end is None
    assert not list(root.rglob("*.part"))


async def test_a_long_part_of_a_shard_is_continued_by_a_run_on_the_whole_but_by_no_neighbour(
    tmp_path: Path,
) -> None:
    archive = str(tmp_path / "archive")
    mark = Mark(etag='"e"', generation="1", total=3 * len(LARGE), crc32c="AAAAAA==", md5=None)

    async def break_off(opened: LocalArchive) -> None:
        async with opened.stage(PLACE) as stage:
            stage.begin(mark)
            await stage.write(LARGE)
            raise ConnectionFailedError("broken")

    with LocalArchive.open(archive, "run-1", IDENTITY, shard=Shard(1, 2)) as one:
        with pytest.raises(ConnectionFailedError):
            await break_off(one)
        with LocalArchive.open(archive, "run-2", IDENTITY, shard=Shard(2, 2)) as other:
            assert other.stage(PLACE).kept is None
        assert one.stage(PLACE).kept == Kept(mark=mark, size=len(LARGE))
    with LocalArchive.open(archive, "run-3", IDENTITY) as whole_archive:
        async with whole_archive.stage(PLACE) as stage:
            assert stage.kept == Kept(mark=mark, size=len(LARGE))
            assert b"".join([data async for data in stage.restore()]) == LARGE
            assert names(tmp_path / "archive" / PLACE.directory) == {".i-1.v1.part"}
    assert not list((tmp_path / "archive" / ".bulkfetch" / "parts").iterdir())


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


def test_what_is_not_a_part_of_ours_is_left_alone(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    die(archive, None)
    theirs = [
        leave(archive / ".notes.part"),
        leave(archive / ".i-1.v1.part"),  # no image lies there
        leave(archive / "p-1" / ".backup.tar.part"),
        leave(archive / "p-1" / "i-1.v1.part"),
        leave(archive / "p-1" / "deeper" / ".i-1.v1.part"),
        leave(archive / ".bulkfetch" / ".cache.part"),
        leave(archive / "p-1" / ".i-2.v1.part" / "file"),
    ]
    outside = leave(tmp_path / "outside" / ".i-1.v1.part")
    (archive / "p-2").symlink_to(outside.parent)
    ours = [
        leave(archive / "p-1" / ".i-1.v1.part"),
        leave(archive / "p-1" / ".i-1.v1.json.part"),
        leave(archive / "p-1" / ".i-1.v1.r2.json.part"),
        leave(archive / "p-1" / ".i-1.v1.r2.json.1-of-2.part"),
        leave(archive / ".bulkfetch" / ".archive.json.part"),
        leave(archive / ".bulkfetch" / "runs" / "run-dead" / ".summary.json.part"),
    ]
    leave(archive / ".bulkfetch" / "holder-1-of-2.json")
    open_and_close(archive)
    assert [path for path in ours if path.exists()] == []
    assert [path for path in [*theirs, outside] if not path.exists()] == []


def test_a_directory_that_may_not_be_read_does_not_stop_a_run(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=3)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    die(archive, None)
    (archive / "lost+found").mkdir(mode=0o000)
    # Root may read everything, unless it gives that up.
    as_anybody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    within = as_anybody if os.geteuid() == 0 else []
    result = download(simulator, manifest, archive, within=within)
    assert result.status == 0, result.err


@pytest.mark.parametrize("name", ["", "/runs", "/parts", "/quarantine"])
def test_a_link_in_the_place_of_our_own_directories_is_refused(tmp_path: Path, name: str) -> None:
    archive, outside = tmp_path / "archive", tmp_path / "outside"
    outside.mkdir()
    link = archive / f".bulkfetch{name}"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(DestinationError, match="symbolic link"):
        LocalArchive.check(str(archive), IDENTITY)
    with pytest.raises(DestinationError, match="symbolic link"):
        open_and_close(archive)
    assert not list(outside.iterdir())


def test_locks_of_a_large_job_are_no_hindrance_and_go_when_it_is_over(tmp_path: Path) -> None:
    private = tmp_path / "archive" / ".bulkfetch"
    for number in range(1, 301):
        leave(private / f"lock-{number}-of-300")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]) + 60, hard))
    try:
        open_and_close(tmp_path / "archive")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not list(private.glob("lock-*"))


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
