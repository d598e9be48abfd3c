"""Who writes into a bucket: one run at a time, its processes and shards; what the dead left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bulkfetch import chain
from bulkfetch.archive import Identity, lease
from bulkfetch.archive.base import Writer
from bulkfetch.archive.store import StoreArchive
from bulkfetch.archive.store_tree import StoreTree
from bulkfetch.errors import DestinationError, TakenError
from bulkfetch.plan import Level, Place
from bulkfetch.simulator import Simulator
from bulkfetch.stores import open_store
from tests.buckets.held import images, put, remove, run
from tests.conftest import Serve, bulkfetch, credentials, start_bulkfetch, write_manifest
from tests.stores import Answer, Bucket, Forward, delay, refuse
from tests.test_archive import sidecar_for
from tests.test_processes import helpers_of

T = TypeVar("T")


def test_what_a_killed_run_left_without_a_sidecar_is_adopted(
    simulator: Simulator, manifest: Path, either: Bucket
) -> None:
    run(simulator, manifest, either)
    before = either.contents()
    for path, _, _ in images(before):
        remove(either, path)
    again = run(simulator, manifest, either)
    assert again.status == 0, again.err
    files = {path for path in before if path.endswith((".jpg", ".png", ".pdf"))}
    assert {path for path in either.contents() if path.endswith((".jpg", ".png", ".pdf"))} == files


def test_one_run_at_a_time_holds_the_bucket(
    serve: Serve, manifest: Path, s3_bucket: Bucket
) -> None:
    slow = serve(patients=6, storage_latency_s=20)
    arguments: list[str | Path] = [
        "download",
        manifest,
        "--out",
        f"{s3_bucket.url}/export",
        "--progress=none",
    ]
    with start_bulkfetch(arguments, credentials(slow)) as first:
        while not any("lease" in path for path in s3_bucket.contents()):
            time.sleep(0.1)
        second = run(serve(patients=6), manifest, s3_bucket)
        assert second.status == 4
        assert f"process {first.pid}" in second.err
        first.kill()
        first.communicate()
    # A dead process of this machine is not waited for.
    third = run(serve(patients=6), manifest, s3_bucket)
    assert third.status == 0, third.err
    assert not any("lease" in path for path in s3_bucket.contents())


def test_a_run_killed_in_the_middle_leaves_what_the_next_one_finishes_in_the_bucket(
    serve: Serve, s3_bucket: Bucket, tmp_path: Path
) -> None:
    simulator = serve(patients=40, storage_latency_s=0.2)
    manifest = write_manifest(tmp_path / "forty.csv", list(simulator.patient_ids()))
    out = f"{s3_bucket.url}/export"
    arguments: list[str | Path] = ["download", manifest, "--out", out, "--progress=none"]
    with start_bulkfetch(arguments, credentials(simulator)) as first:
        while s3_bucket.proxy.count(r"^PUT /\S+v1\.json") < 20:
            time.sleep(0.01)
        first.kill()
        first.communicate()
    for _, sidecar, held in images(s3_bucket.contents()):
        assert held is None or hashlib.sha256(held).hexdigest() == sidecar["file"]["sha256"]
    again = run(simulator, manifest, s3_bucket)
    assert again.status == 0, again.err
    assert again.summary["images"]["unchanged"] > 0 < again.summary["images"]["downloaded"]
    sound = bulkfetch("verify", out, "--manifest", manifest)
    assert sound.status == 0, sound.err


def test_shards_write_side_by_side_and_are_added_up(
    simulator: Simulator, manifest: Path, either: Bucket
) -> None:
    def start(shard: str) -> subprocess.Popen[bytes]:
        out = f"{either.url}/export"
        arguments: list[str | Path] = [
            "download",
            manifest,
            "--out",
            out,
            "--shard",
            shard,
            "--progress=none",
        ]
        return start_bulkfetch(arguments, credentials(simulator))

    with start("1/3") as one, start("3/3") as three:
        assert (one.wait(60), three.wait(60)) == (0, 0), three.communicate()[1]
    told = bulkfetch("status", f"{either.url}/export", "--json")
    assert told.status == 1
    assert json.loads(told.out)["missing_shards"] == ["2/3"]
    with start("2/3") as two:
        assert two.wait(60) == 0
    status = json.loads(bulkfetch("status", f"{either.url}/export", "--json").out)
    assert status["ok"]
    assert status["patients"]["complete"] + status["patients"]["empty"] == 6


def test_several_processes_write_into_one_bucket(
    serve: Serve, s3_bucket: Bucket, tmp_path: Path
) -> None:
    # Long enough for the other process to come to some of it.
    simulator = serve(patients=60, storage_latency_s=1)
    manifest = write_manifest(tmp_path / "many.csv", list(simulator.patient_ids()))
    result = run(simulator, manifest, s3_bucket, "--processes", "2")
    assert result.status == 0, result.err
    journals = {path.rpartition("/")[2] for path in s3_bucket.contents() if "/journal" in path}
    assert {"journal.000001.jsonl", "journal-2.000001.jsonl"} <= journals
    assert bulkfetch("verify", f"{s3_bucket.url}/export", "--manifest", manifest).status == 0


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_image_that_two_rows_list_is_put_into_a_new_bucket_once(
    serve: Serve, s3_bucket: Bucket, tmp_path: Path, processes: str
) -> None:
    simulator = serve(patients=12, api_latency_s=0.02, storage_latency_s=0.02)
    rows = []
    for patient in simulator.patient_ids():
        rows.append(f"{patient},")
        rows += [f",{coverage}" for coverage in simulator.coverage_ids(patient)]
    manifest = tmp_path / "both.csv"
    manifest.write_text("\n".join(["patient_id,coverage_id", *rows]) + "\n", encoding="utf-8")
    result = run(simulator, manifest, s3_bucket, f"--processes={processes}")
    assert result.status == 0, result.err
    found = list(images(s3_bucket.contents()))
    assert result.summary["images"]["downloaded"] == sum(held is not None for *_, held in found)
    assert result.summary["listed_again"] > 0
    assert not any(".r2.json" in path for path, *_ in found)
    assert bulkfetch("verify", f"{s3_bucket.url}/export", "--manifest", manifest).status == 0


async def once(_: str, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """No second try."""
    return await attempt()


async def test_other_bytes_of_an_image_that_is_archived_meanwhile_leave_nothing(
    s3_bucket: Bucket,
) -> None:
    url, place = f"{s3_bucket.url}/export", Place("p-1", "i-1.v1")
    identity = Identity(api_host="127.0.0.1")
    with StoreArchive.open(
        url, "run-a1", identity, shard=None, again=once, called_off=threading.Event()
    ) as archive:
        for data in (b"first", b"second"):
            assert (await archive.look([place], [Level("p-1", True)], rehash=False)).held
            async with archive.stage(place) as stage:
                await stage.write(data)
                putting = archive.publish(stage, "i-1.v1.jpg", 1, sidecar_for(place, data))
                with pytest.raises(TakenError) if data == b"second" else nullcontext():
                    await putting
    found = {path: data for path, data in s3_bucket.contents().items() if "/p-1/" in path}
    assert len(found) == 2
    assert found["export/p-1/i-1.v1.jpg"] == b"first"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_run_goes_on_and_the_bucket_verifies(
    serve: Serve, s3_bucket: Bucket, tmp_path: Path, processes: str
) -> None:
    simulator = serve(patients=30, storage_latency_s=0.05)
    manifest = write_manifest(tmp_path / "many.csv", list(simulator.patient_ids()))
    out = f"{s3_bucket.url}/export"
    arguments: list[str | Path] = [
        "download", manifest, "--out", out, "--progress=none", "--processes", processes
    ]  # fmt: skip
    for images_there in (3, 30):
        with start_bulkfetch(arguments, credentials(simulator)) as killed:
            while (
                killed.poll() is None and s3_bucket.proxy.count(r"^PUT .*\.v1\.json") < images_there
            ):
                time.sleep(0.02)
            killed.kill()
            killed.communicate()
    again = run(simulator, manifest, s3_bucket)
    assert again.status == 0, again.err
    checked = bulkfetch("verify", out, "--manifest", manifest)
    assert checked.status == 0, checked.err
    assert not s3_bucket.unfinished_uploads()


def test_a_run_one_of_whose_processes_was_killed_verifies(
    serve: Serve, s3_bucket: Bucket, tmp_path: Path
) -> None:
    simulator = serve(patients=300)
    manifest = write_manifest(tmp_path / "many.csv", list(simulator.patient_ids()))
    out = f"{s3_bucket.url}/export"
    arguments: list[str | Path] = [
        "download", manifest, "--out", out, "--progress=none", "--processes=2",
        "--query-concurrency=2", "--download-concurrency=2",
    ]  # fmt: skip
    proxy = s3_bucket.proxy
    with start_bulkfetch(arguments, credentials(simulator)) as killed:
        # A first segment is there, and the next one is not due when others have ended.
        for pattern, more in ((r"^PUT .*/journal-2\.", 1), (r"^PUT .*\.v1\.json", 24)):
            until = proxy.count(pattern) + more
            while killed.poll() is None and proxy.count(pattern) < until:
                time.sleep(0.02)
        for helper in helpers_of(killed):
            os.kill(helper, signal.SIGKILL)
        assert killed.stderr is not None
        assert b"died (SIGKILL)" in killed.stderr.readline()
        killed.terminate()
        killed.communicate(timeout=100)
    checked = bulkfetch("verify", out)
    assert "journal" not in checked.err


def test_what_a_killed_run_left_under_a_name_of_its_own_goes_when_there_is_a_sidecar(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    out = f"{s3_bucket.url}/export"
    run(simulator, manifest, s3_bucket)
    path, sidecar, _ = next(found for found in images(s3_bucket.contents()) if found[2])
    stem, ending = path.removesuffix(".json"), sidecar["file"]["path"].rpartition(".")[2]
    remove(s3_bucket, path)
    # A name of its own is what a long image has always, and another one beside a stranger's.
    put(s3_bucket, f"{stem}.{ending}", b"a stranger's", overwrite=True)
    s3_bucket.proxy.strike(r"^PUT .*\.v1\.json", delay(600), times=10**6)
    arguments: list[str | Path] = ["download", manifest, "--out", out, "--progress=none"]

    def own_names() -> list[str]:
        return [p for p in s3_bucket.contents() if re.match(re.escape(stem) + r"\.[0-9a-f]{6}-", p)]

    with start_bulkfetch(arguments, credentials(simulator)) as killed:
        while s3_bucket.proxy.count(r"^PUT .*\.v1\.[0-9a-f]{6}-") < 1:
            assert killed.poll() is None
            time.sleep(0.05)
        killed.kill()
        killed.communicate()
    s3_bucket.proxy.rules.clear()
    (left,) = own_names()
    again = run(simulator, manifest, s3_bucket)
    assert again.status == 0, again.err
    (kept,) = own_names()
    assert kept != left
    # A run that was killed before it had removed it.
    put(s3_bucket, left, b"whatever")
    once_more = run(simulator, manifest, s3_bucket)
    assert once_more.summary["images"]["downloaded"] == 0
    assert own_names() == [kept]
    remove(s3_bucket, f"{stem}.{ending}")
    checked = bulkfetch("verify", out, "--manifest", manifest)
    assert checked.status == 0, checked.out + checked.err


def test_an_image_that_another_archived_first_leaves_nothing_under_a_name_of_its_own(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    run(simulator, manifest, s3_bucket)
    before = s3_bucket.contents()
    path, sidecar, held = next(found for found in images(before) if found[2])
    assert held is not None
    file = f"{path.rpartition('/')[0]}/{sidecar['file']['path']}"
    remove(s3_bucket, path)
    put(s3_bucket, file, b"a stranger's", overwrite=True)

    async def archived_first(body: bytes, forward: Forward) -> Answer:
        await asyncio.to_thread(put, s3_bucket, file, held, overwrite=True)
        await asyncio.to_thread(put, s3_bucket, path, before[path])
        return await forward(body)

    s3_bucket.proxy.strike(r"^PUT .*\.v1\.json", archived_first)
    run(simulator, manifest, s3_bucket)
    assert s3_bucket.proxy.count(r"^PUT .*\.v1\.[0-9a-f]{6}-") > 0
    checked = bulkfetch("verify", f"{s3_bucket.url}/export")
    assert checked.status == 0, checked.out + checked.err


@pytest.mark.parametrize("there", [True, False])
def test_a_lease_that_can_never_be_taken_is_not_waited_for_for_ever(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    for name, seconds in {"LEASE_S": 0.2, "_GIVE_UP_S": 0.2, "_LOOK_S": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    if there:
        put(s3_bucket, "export/.bulkfetch/lease.json", b"")
    # Made anew, it is in conflict; and over what is there, nothing may be put.
    refused = refuse(412, "PreconditionFailed") if there else refuse(409, "OperationAborted")
    s3_bucket.proxy.strike(r"^PUT .*lease\.json", refused, times=10**6)
    store = open_store(f"{s3_bucket.url}/export")
    with (
        pytest.raises(DestinationError, match="neither made nor taken over"),
        lease.hold(store, "run", None, lambda _: None, threading.Event()),
    ):
        pass


def test_a_process_of_another_container_is_not_taken_for_a_dead_one(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.2)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    holder = {"run_id": "other", "pid": ended.pid, "host": socket.gethostname(), "shard": None}
    text = json.dumps({**holder, "among": "the processes of another container"})
    put(s3_bucket, "export/.bulkfetch/lease.json", text.encode())
    waited: list[str] = []
    store = open_store(f"{s3_bucket.url}/export")
    with lease.hold(store, "run", None, waited.append, threading.Event()):
        assert "may be held by run other" in waited[0]


@pytest.mark.parametrize("is_taken", [True, False])
async def test_another_process_of_a_run_that_lost_its_lease_writes_nothing_more(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, *, is_taken: bool
) -> None:
    async def until_it_is_lost() -> None:
        while True:
            await archive.check_room()
            await asyncio.sleep(0.01)

    for name, seconds in {"BEAT_S": 0.01, "_GIVE_UP_S": 60 if is_taken else 1}.items():
        monkeypatch.setattr(lease, name, seconds)
    path, identity = "export/.bulkfetch/lease-1-of-2.json", Identity(api_host="127.0.0.1")
    holder = {"run_id": "run-a1", "pid": 1, "host": "elsewhere", "shard": "1/2"}
    put(s3_bucket, path, json.dumps(holder).encode())
    place, first = Place("p-1", "i-1.v1"), Writer("1-of-2", "1", ())
    with StoreArchive.join(
        f"{s3_bucket.url}/export", "run-a1", identity, first, 2, again=once
    ) as archive:
        await archive.check_room()
        if is_taken:
            other = json.dumps({**holder, "run_id": "run-b2"})
            put(s3_bucket, path, other.encode(), overwrite=True)
        with pytest.raises(DestinationError, match="no longer"):
            await asyncio.wait_for(until_it_is_lost(), 50)
        with pytest.raises(DestinationError, match="no longer"):
            await archive.note(place, 1, sidecar_for(place, b""))
    assert list(s3_bucket.contents()) == [path]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_run_that_looks_whether_another_is_at_work_can_be_interrupted(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket, number: int, status: int
) -> None:
    path = "export/.bulkfetch/lease.json"
    holder = {"run_id": "other", "pid": 1, "host": "elsewhere", "shard": None}
    put(s3_bucket, path, json.dumps(holder).encode())
    before = s3_bucket.contents()
    arguments: list[str | Path] = [
        "download", manifest, "--out", f"{s3_bucket.url}/export", "--progress=none"
    ]  # fmt: skip
    with start_bulkfetch(arguments, credentials(simulator)) as run:
        assert run.stderr is not None
        assert b"may be held by run other" in run.stderr.readline()
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert run.returncode == status
    assert err.splitlines() == [b"interrupted before anything was fetched"]
    # It was not waited for until it could be taken over.
    assert s3_bucket.contents() == before


def test_earlier_runs_are_asked_after_side_by_side(s3_bucket: Bucket) -> None:
    expected = {}
    for number in range(12):
        run_id, line = f"20260101T00000{number % 10}Z-{number:06x}", f"{number}\n".encode()
        put(s3_bucket, f"export/.bulkfetch/runs/{run_id}/journal.000001.jsonl", line)
        expected[run_id] = {"journal.jsonl": chain.digest(line)}
    waiting, until, has_company = 0, 0.0, asyncio.Event()

    async def wait_for_company(body: bytes, forward: Forward) -> Answer:
        nonlocal waiting, until
        waiting += 1
        if waiting == 4:
            has_company.set()
        until = until or asyncio.get_running_loop().time() + 20
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await has_company.wait()
        waiting -= 1
        return await forward(body)

    s3_bucket.proxy.strike(r"runs.*Z-", wait_for_company, times=10**6)
    tree = StoreTree(open_store(f"{s3_bucket.url}/export"))
    assert chain.heads_of_runs(tree, durable=True) == expected
    assert has_company.is_set()
