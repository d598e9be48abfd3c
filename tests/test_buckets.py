"""The main job into object stores: the same promises as on a disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from multidict import CIMultiDict

from bulkfetch import chain
from bulkfetch.archive import Identity, lease
from bulkfetch.archive.base import Writer
from bulkfetch.archive.store import StoreArchive
from bulkfetch.archive.store_tree import StoreTree
from bulkfetch.errors import DestinationError, TakenError
from bulkfetch.plan import Level, Place
from bulkfetch.simulator import Simulator, parse_fault
from bulkfetch.stores import StoreError, open_store
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    start_bulkfetch,
    write_manifest,
)
from tests.pages import free_pair
from tests.stores import (
    SECRET,
    SIGNATURE_WORDS,
    Answer,
    Bucket,
    Fault,
    Forward,
    break_off,
    damage,
    delay,
    forget,
    hang_up,
    lose,
    refuse,
    refuse_signature,
)
from tests.test_archive import sidecar_for
from tests.test_bag import validate
from tests.test_processes import helpers_of

T = TypeVar("T")


@pytest.fixture(params=["s3", "gs"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket of each kind, which this process's environment leads to."""
    name = {"s3": "bucket", "gs": "google_bucket"}[request.param]
    made: Bucket = request.getfixturevalue(name)
    made.export(monkeypatch)
    return made


@pytest.fixture
def s3_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket of S3, which this process's environment leads to."""
    bucket.export(monkeypatch)
    return bucket


@pytest.fixture
def simulator(serve: Serve) -> Simulator:
    return serve(patients=6)


@pytest.fixture
def manifest(simulator: Simulator, tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))


def run(simulator: Simulator, manifest: str | Path, bucket: Bucket, *options: str) -> Result:
    result = download(simulator, manifest, f"{bucket.url}/export", *options)
    assert SECRET not in result.out + result.err
    return result


def put(bucket: Bucket, path: str, data: bytes, *, overwrite: bool = False) -> None:
    open_store(bucket.url).put(path, data, "overwrite" if overwrite else "create")


def remove(bucket: Bucket, path: str) -> None:
    open_store(bucket.url).delete(path)


def images(contents: dict[str, bytes]) -> Iterator[tuple[str, dict[str, Any], bytes | None]]:
    """The sidecars, each with its file."""
    for path, data in contents.items():
        if path.endswith(".json") and "/.bulkfetch/" not in path:
            sidecar = json.loads(data)
            file = sidecar["file"]
            held = contents[f"{path.rpartition('/')[0]}/{file['path']}"] if file else None
            yield path, sidecar, held


def test_every_image_is_in_the_bucket_and_nothing_is_fetched_twice(
    simulator: Simulator, manifest: Path, either: Bucket
) -> None:
    first = run(simulator, manifest, either)
    assert first.status == 0, first.err
    contents = either.contents()
    found = list(images(contents))
    downloaded = [held for _, _, held in found if held is not None]
    assert len(downloaded) == first.summary["images"]["downloaded"] > 6
    assert sum(map(len, downloaded)) == first.summary["bytes"]
    again = run(simulator, manifest, either)
    assert again.status == 0, again.err
    assert again.summary["images"]["downloaded"] == 0
    assert again.summary["images"]["unchanged"] == first.summary["images"]["downloaded"]
    now = either.contents()
    assert {path: now[path] for path in contents} == contents
    assert not either.unfinished_uploads()


def test_a_manifest_may_lie_in_the_bucket_and_so_may_what_failed(
    serve: Serve, manifest: Path, either: Bucket, tmp_path: Path
) -> None:
    simulator = serve(patients=6, faults=(parse_fault("storage:404x1"),))
    put(either, "in/patients.csv", manifest.read_bytes())
    first = run(simulator, f"{either.url}/in/patients.csv", either, "--retries", "0")
    assert first.status == 1, first.err
    failures = first.summary["failures"]
    assert failures.startswith(either.url)
    again = run(simulator, failures, either)
    assert again.status == 0, again.err
    assert again.summary["patients"]["total"] == first.summary["patients"]["failed"] > 0
    missing = run(simulator, f"{either.url}/in/nobody.csv", either)
    assert missing.status == 2
    assert "there is no such file" in missing.err


def test_status_tells_of_a_run_in_a_bucket(
    simulator: Simulator, manifest: Path, either: Bucket
) -> None:
    done = run(simulator, manifest, either)
    told = bulkfetch("status", f"{either.url}/export", "--json")
    assert told.status == 0, told.err
    status = json.loads(told.out)
    assert status["state"] == "finished"
    assert status["images"] == done.summary["images"]
    nothing = bulkfetch("status", f"{either.url}/nothing")
    assert nothing.status == 2
    assert "is no archive" in nothing.err


def test_nothing_is_overwritten_whatever_lies_under_a_name(
    simulator: Simulator, manifest: Path, either: Bucket
) -> None:
    first = run(simulator, manifest, either)
    before = either.contents()
    strangers = {}
    for path, sidecar, held in images(before):
        if held is not None:
            remove(either, path)
            file = f"{path.rpartition('/')[0]}/{sidecar['file']['path']}"
            strangers[file] = b"somebody else's"
            put(either, file, strangers[file], overwrite=True)
    again = run(simulator, manifest, either)
    assert again.status == 0, again.err
    assert again.summary["images"]["downloaded"] == first.summary["images"]["downloaded"]
    after = either.contents()
    assert {path: after[path] for path in strangers} == strangers
    assert all(
        held is None or hashlib.sha256(held).hexdigest() == sidecar["file"]["sha256"]
        for _, sidecar, held in images(after)
    )


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


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (refuse(403, "AccessDenied"), "refused the credentials"),
        (refuse(301, "PermanentRedirect"), "region"),
        (refuse(404, "NoSuchBucket"), "no such bucket"),
    ],
    ids=["refused", "region", "bucket"],
)
def test_a_bucket_that_cannot_be_used_is_told_before_anything_is_fetched(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket, fault: Fault, said: str
) -> None:
    s3_bucket.proxy.strike(".", fault, times=10**6)
    result = run(simulator, manifest, s3_bucket)
    assert result.status == 4, result.err
    assert said in result.err
    assert not s3_bucket.contents()
    assert len(result.err.splitlines()) < 4


@pytest.mark.parametrize("command", ["verify", "status", "report", "bag --tar x.tar"])
def test_a_bucket_that_cannot_be_read_is_no_finding(
    s3_bucket: Bucket, tmp_path: Path, command: str
) -> None:
    s3_bucket.proxy.strike(".", refuse(403, "AccessDenied"), times=10**6)
    name, *options = command.split()
    result = bulkfetch(name, f"{s3_bucket.url}/export", *options, cwd=tmp_path)
    assert (result.status, "refused the credentials" in result.err) == (4, True)
    assert "cannot write" not in result.err
    assert not list(tmp_path.iterdir())


FAULTS: Mapping[str, tuple[str, Fault]] = {
    "throttled": ("^PUT ", refuse(503, "SlowDown")),
    "conflict": ("^PUT ", refuse(409, "ConditionalRequestConflict")),
    "cut": (".", hang_up),
    "forgotten": ("^PUT ", forget),
    "damaged": ("^PUT ", damage),
    "not kept": (r"^PUT /\S+\.v1\.", lose),
    "lists": (r"^GET .*list-type", refuse(500, "InternalError")),
    "bodies": (r"^GET .*\.json", break_off),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_store_that_fails_now_and_then_costs_nothing_but_time(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket, name: str
) -> None:
    pattern, fault = FAULTS[name]
    for turn in range(8):
        s3_bucket.proxy.strike(pattern, fault, skip=3 + 5 * turn)
    first = run(simulator, manifest, s3_bucket)
    again = run(simulator, manifest, s3_bucket)
    assert (first.status, again.status) == (0, 0), first.err + again.err
    assert again.summary["images"]["downloaded"] == 0
    sums = first.summary["images"]
    contents = s3_bucket.contents()
    found = list(images(contents))
    assert len(found) == sums["downloaded"] + sums["not_uploaded"]
    for _, sidecar, held in found:
        assert held is None or hashlib.sha256(held).hexdigest() == sidecar["file"]["sha256"]
    assert len({sidecar["file"]["path"] for _, sidecar, held in found if held}) == len(
        [path for path in contents if path.endswith((".jpg", ".png", ".pdf"))]
    )


def test_a_dead_store_ends_the_run_and_the_same_command_goes_on(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    s3_bucket.proxy.strike("^PUT .*(jpg|png|pdf)", refuse(503, "SlowDown"), skip=3, times=10**6)
    dead = run(simulator, manifest, s3_bucket, "--retries", "1")
    assert dead.status == 4, dead.err
    assert "503 SlowDown" in dead.err
    s3_bucket.proxy.rules.clear()
    again = run(simulator, manifest, s3_bucket)
    assert again.status == 0, again.err
    assert again.summary["images"]["unchanged"] > 0


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:s3cr3t@bucket/export",
        "gs://bucket/export?X-Goog-Signature=s3cr3t",
        "https://bucket.invalid/export?sig=s3cr3t",
        "s3://bucket/..",
        "s3://bucket/../export",
        "s3://bucket//export",
        "s3:///export",
        "file:///tmp/archive?sig=s3cr3t",
        "file:///tmp/archive#2",
        "file:///tmp/archive%00",
    ],
)
def test_a_url_that_is_no_archives_is_refused_and_no_secret_in_it_is_told(url: str) -> None:
    done = bulkfetch("verify", url)
    assert done.status == 2, done.err
    assert len(done.err.splitlines()) == 1
    assert "s3cr3t" not in done.err


@pytest.mark.parametrize("prefix", ["a b/ü", "a%20b%2Fc", "50%", "A+B&C=~x"])
def test_an_archive_lies_under_the_prefix_that_is_written(
    simulator: Simulator, manifest: Path, either: Bucket, prefix: str
) -> None:
    out = f"{either.url}/{prefix}"
    done = download(simulator, manifest, out)
    assert done.status == 0, done.err
    assert all(path.startswith(f"{prefix}/") for path in either.contents())
    assert bulkfetch("verify", out).status == 0


@pytest.mark.parametrize("command", ["verify", "status", "bag", "download"])
def test_without_the_extra_it_is_told_which_one_is_missing(
    simulator: Simulator, manifest: Path, command: str
) -> None:
    arguments = {"bag": ["--tar", "-"], "download": ["--out", "s3://bucket/export"]}
    named = manifest if command == "download" else "s3://bucket/export"
    # A module that is None is one that is not installed.
    code = (
        "import sys; sys.modules['obstore'] = None; from bulkfetch.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, named, *arguments.get(command, [])],
        env={**os.environ, **credentials(simulator)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'bulkfetch[cloud]'" in done.stderr


@pytest.mark.parametrize("skip", [0, 8], ids=["at-once", "later"])
def test_what_a_store_quotes_of_a_refused_signature_is_shown_nowhere(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket, skip: int
) -> None:
    log = ("--log-level", "debug")
    s3_bucket.proxy.strike(r"^(GET|PUT|HEAD|DELETE)", refuse_signature, skip=skip, times=10**6)
    out = f"{s3_bucket.url}/export"
    told = [
        run(simulator, manifest, s3_bucket, *log),
        bulkfetch("status", out),
        bulkfetch("verify", out),
        run(simulator, f"{out}/patients.csv", s3_bucket, *log),
    ]
    assert all(result.status for result in told)
    assert "refused the credentials" in told[0].err
    s3_bucket.proxy.rules.clear()
    written = b"".join(s3_bucket.contents().values()).decode("utf-8", "replace")
    shown = "".join(result.out + result.err for result in told) + written
    for word in (SECRET, *SIGNATURE_WORDS.values()):
        assert word not in shown


def test_every_object_is_encrypted_as_the_environment_says(
    serve: Serve, tmp_path: Path, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", key)
    simulator = serve(patients=1, images_per_patient=1, fixed_bytes=70_000_000)
    long = write_manifest(tmp_path / "long.csv", list(simulator.patient_ids()))
    result = run(simulator, long, s3_bucket)
    assert result.status == 0, result.err
    short = serve(patients=6)
    many = write_manifest(tmp_path / "many.csv", list(short.patient_ids()))
    assert download(short, many, f"{s3_bucket.url}/short").status == 0
    # The parts of an upload are encrypted as its beginning says.
    writes = [
        asked
        for asked in s3_bucket.proxy.asked
        if re.match(r"PUT [^?]+$|POST .*[?]uploads", asked.what)
    ]
    assert {asked.what.partition(" ")[0] for asked in writes} == {"PUT", "POST"}
    for asked in writes:
        assert asked.headers["x-amz-server-side-encryption"] == "aws:kms", asked.what
        assert asked.headers["x-amz-server-side-encryption-aws-kms-key-id"] == key, asked.what


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


def test_a_long_body_goes_by_parts_to_a_name_of_its_own(
    serve: Serve, tmp_path: Path, either: Bucket
) -> None:
    simulator = serve(patients=1, images_per_patient=1, fixed_bytes=70_000_000)
    manifest = write_manifest(tmp_path / "one.csv", list(simulator.patient_ids()))
    result = run(simulator, manifest, either)
    assert result.status == 0, result.err
    for _, sidecar, held in images(either.contents()):
        if held is not None:
            assert re.fullmatch(r".+\.v[0-9]+\.[0-9a-f]{6}-[0-9]+\.[a-z]+", sidecar["file"]["path"])
            assert hashlib.sha256(held).hexdigest() == sidecar["file"]["sha256"]
    assert not either.unfinished_uploads()
    again = run(simulator, manifest, either)
    assert again.summary["images"]["downloaded"] == 0


def test_a_lost_part_is_never_taken_for_a_whole_body(
    serve: Serve, tmp_path: Path, s3_bucket: Bucket
) -> None:
    simulator = serve(patients=1, images_per_patient=1, fixed_bytes=70_000_000)
    manifest = write_manifest(tmp_path / "one.csv", list(simulator.patient_ids()))
    s3_bucket.proxy.strike("^PUT .*partNumber=2", lose, times=1)
    result = run(simulator, manifest, s3_bucket)
    for _, sidecar, held in images(s3_bucket.contents()):
        assert held is None or hashlib.sha256(held).hexdigest() == sidecar["file"]["sha256"]
    assert result.status == 0 or result.summary["images"]["failed"], result.err


def test_a_part_that_arrives_damaged_is_found_and_the_object_goes(
    serve: Serve, tmp_path: Path, either: Bucket
) -> None:
    simulator = serve(patients=1, images_per_patient=1, fixed_bytes=70_000_000)
    manifest = write_manifest(tmp_path / "one.csv", list(simulator.patient_ids()))
    either.proxy.strike("^PUT .*partNumber=2", damage, times=1)
    result = run(simulator, manifest, either)
    assert result.status == 0, result.err
    contents = either.contents()
    held = [(sidecar, data) for _, sidecar, data in images(contents) if data is not None]
    assert held
    for sidecar, data in held:
        assert hashlib.sha256(data).hexdigest() == sidecar["file"]["sha256"]
    assert sum(len(data) > 10**7 for data in contents.values()) == len(held)
    assert not either.unfinished_uploads()


def test_what_is_damaged_in_a_bucket_is_kept_aside_and_fetched_anew(
    simulator: Simulator, manifest: Path, either: Bucket
) -> None:
    run(simulator, manifest, either)
    before = either.contents()
    torn, cut = [path for path, _, held in images(before) if held is not None][:2]
    put(either, torn, b"{", overwrite=True)
    sidecar = json.loads(before[cut])
    file = f"{cut.rpartition('/')[0]}/{sidecar['file']['path']}"
    put(either, file, b"short", overwrite=True)
    again = run(simulator, manifest, either)
    assert again.status == 0, again.err
    assert again.summary["images"]["downloaded"] == 2
    after = either.contents()
    aside = {path for path in after if "/quarantine/" in path}
    assert {path.rpartition("/")[2] for path in aside} >= {
        torn.rpartition("/")[2], file.rpartition("/")[2]
    }  # fmt: skip
    assert after[file] == before[file]


def test_verify_reads_a_bucket_and_names_what_is_wrong_in_it(
    simulator: Simulator, manifest: Path, either: Bucket
) -> None:
    run(simulator, manifest, either)
    run(simulator, manifest, either)
    out = f"{either.url}/export"
    sound = bulkfetch("verify", out, "--manifest", manifest, "--json")
    assert sound.status == 0, sound.out + sound.err
    told = json.loads(sound.out.splitlines()[-1])["report"]
    contents = either.contents()
    held = [(path, s, data) for path, s, data in images(contents) if data is not None]
    assert told["hashed"] == len(held)
    assert told["runs"] == 2

    def at(number: int, *, file: bool) -> str:
        path, sidecar, _ = held[number]
        return f"{path.rpartition('/')[0]}/{sidecar['file']['path']}" if file else path

    damages = {
        "missing": (at(0, file=True), None),
        "changed": (at(1, file=True), bytes(len(held[1][2]))),
        "torn": (at(2, file=False), b"{"),
        "lost": (at(3, file=False), None),
    }
    for path, data in damages.values():
        if data is None:
            remove(either, path)
        else:
            put(either, path, data, overwrite=True)
    put(either, "export/somebody.txt", b"else's")
    put(either, "export/.bulkfetch/else.txt", b"")
    segments = sorted(p for p in contents if re.search(r"journal\.0+2\.jsonl$", p))
    remove(either, segments[0])
    found = bulkfetch("verify", out, "--json")
    assert found.status == 1
    told = [json.loads(line) for line in found.out.splitlines()]
    kinds = [line["finding"]["kind"] for line in told if "finding" in line]
    assert {"missing", "changed", "torn", "stray"} <= set(kinds)
    assert {"chain", "journal"} & set(kinds)


def test_a_copy_of_a_bucket_on_a_disk_is_the_same_archive(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket, tmp_path: Path
) -> None:
    run(simulator, manifest, s3_bucket)
    s3_bucket.copy_to(tmp_path)
    (tmp_path / "export").chmod(0o700)
    sound = bulkfetch("verify", tmp_path / "export", "--manifest", manifest)
    assert sound.status == 0, sound.err
    again = download(simulator, manifest, tmp_path / "export")
    assert again.status == 0, again.err
    assert again.summary["images"]["downloaded"] == 0
    assert bulkfetch("verify", tmp_path / "export").status == 0


def test_a_bag_is_made_of_a_bucket(
    simulator: Simulator, manifest: Path, either: Bucket, tmp_path: Path
) -> None:
    run(simulator, manifest, either)
    out = f"{either.url}/export"
    linked = bulkfetch("bag", out, "--to", tmp_path / "linked")
    assert linked.status == 2
    assert "--copy" in linked.err
    assert not (tmp_path / "linked").exists()
    copied = bulkfetch("bag", out, "--to", tmp_path / "bag", "--copy")
    assert copied.status == 0, copied.err
    validate(tmp_path / "bag")
    tar = bulkfetch("bag", out, "--tar", tmp_path / "bag.tar")
    assert tar.status == 0, tar.err
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "bag.tar", "-C", tmp_path / "out"], check=True)
    validate(tmp_path / "out" / "bag")
    journals = [*(tmp_path / "bag" / "bulkfetch").rglob("*.jsonl")]
    assert {path.name for path in journals} == {"journal.jsonl"}


def test_a_store_that_overwrites_is_refused(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    s3_bucket.proxy.strike(r"^PUT .*lease\.json", lose, skip=1)
    result = run(simulator, manifest, s3_bucket)
    assert result.status == 4
    assert "If-None-Match" in result.err


def test_doctor_examines_a_bucket(simulator: Simulator, manifest: Path, either: Bucket) -> None:
    out = f"{either.url}/export"
    environment = credentials(simulator)
    before = bulkfetch("doctor", "--out", out, environment=environment)
    assert before.status == 0, before.err
    assert not either.contents()
    run(simulator, manifest, either)
    contents = either.contents()
    after = bulkfetch("doctor", "--out", out, environment=environment)
    assert after.status == 0, after.err
    assert "an archive is there" in after.err
    assert either.contents() == contents
    either.proxy.strike("^PUT ", refuse(403, "AccessDenied"), times=100)
    refused = bulkfetch("doctor", "--out", out, environment=environment)
    assert refused.status == 1
    assert "AccessDenied" in refused.err


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


def test_the_first_run_asks_for_no_listing_of_a_patient_and_the_next_for_one(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    def listed(result: Result) -> int:
        assert result.status == 0, result.err
        found = sum(
            s3_bucket.proxy.count(rf"^GET \S+prefix=export%2F{patient}")
            for patient in simulator.patient_ids()
        )
        s3_bucket.proxy.asked.clear()
        return found

    assert listed(run(simulator, manifest, s3_bucket)) == 0
    assert listed(run(simulator, manifest, s3_bucket)) == 6
    for path in [path for path in s3_bucket.contents() if "/.bulkfetch/" in path]:
        remove(s3_bucket, path)
    # It is the images that count, whatever became of what lies beside them.
    assert listed(run(simulator, manifest, s3_bucket)) == 6


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


LISTS_IMAGES = r"^GET .*list-type.*prefix=export(/|%2F)(?!\.|%2E)"


async def with_another_tag(body: bytes, forward: Forward) -> Answer:
    """It is done, and tagged with what is no digest, as where a key of one's own encrypts it."""
    answer = await forward(body)
    answer.headers["ETag"] = '"0"'
    return answer


async def claimed_meanwhile(body: bytes, forward: Forward) -> Answer:
    """Another writer does the same a moment before."""
    await forward(body)
    return await forward(body)


def test_a_conflict_is_waited_for_and_no_image_is_taken_for_damaged(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    run(simulator, manifest, s3_bucket)
    before = s3_bucket.contents()
    for pattern in (r"^GET .*\.v1\.json", LISTS_IMAGES):
        s3_bucket.proxy.strike(pattern, refuse(409, "OperationAborted"), skip=1, times=3)
    again = run(simulator, manifest, s3_bucket, "--retries", "9")
    assert again.status == 0, again.err
    assert again.summary["images"]["downloaded"] == 0
    after = s3_bucket.contents()
    assert {path: after[path] for path in before} == before
    assert not any("/quarantine/" in path for path in after)


def test_a_conflict_over_whose_archive_it_is_ends_no_run(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    s3_bucket.proxy.strike("^PUT .*archive.json", refuse(409, "ConditionalRequestConflict"))
    s3_bucket.proxy.strike("^PUT .*archive.json", claimed_meanwhile, skip=1)
    done = run(simulator, manifest, s3_bucket)
    assert done.status == 0, done.err
    identity = json.loads(s3_bucket.contents()["export/.bulkfetch/archive.json"])
    assert identity["organization_id"]


def test_a_dry_run_lives_with_a_store_that_fails_now_and_then(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    run(simulator, manifest, s3_bucket)
    for skip in (0, 1, 4):
        s3_bucket.proxy.strike("^GET ", refuse(503, "SlowDown"), skip=skip)
    done = run(simulator, manifest, s3_bucket, "--dry-run")
    assert done.status == 0, done.err


@pytest.mark.parametrize("deletions", [0, 1])
def test_what_is_half_in_quarantine_is_moved_to_its_end(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket, deletions: int
) -> None:
    run(simulator, manifest, s3_bucket)
    before = s3_bucket.contents()
    path, sidecar, _ = next(found for found in images(before) if found[2] is not None)
    file = f"{path.rpartition('/')[0]}/{sidecar['file']['path']}"
    put(s3_bucket, file, b"short", overwrite=True)
    s3_bucket.proxy.strike(r"^DELETE .*\.v1\.", refuse(503, "SlowDown"), skip=deletions)
    again = run(simulator, manifest, s3_bucket)
    assert again.status == 0, again.err
    assert again.summary["images"]["downloaded"] == 1
    assert s3_bucket.contents()[file] == before[file]
    checked = bulkfetch("verify", f"{s3_bucket.url}/export")
    assert checked.status == 0, checked.out + checked.err


def test_a_copy_that_a_store_only_speaks_of_loses_nothing(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    run(simulator, manifest, s3_bucket)
    torn = next(path for path, _, _ in images(s3_bucket.contents()))
    put(s3_bucket, torn, b"{", overwrite=True)
    s3_bucket.proxy.strike("^PUT .*/quarantine/", failed_though_begun)
    s3_bucket.proxy.strike("^PUT .*/quarantine/", a_page_of_somebody)
    again = run(simulator, manifest, s3_bucket)
    assert again.status == 0, again.err
    name = torn.rpartition("/")[2]
    assert [data for path, data in s3_bucket.contents().items()
            if "/quarantine/" in path and path.endswith(name)] == [b"{"]  # fmt: skip


@pytest.mark.parametrize("endpoint", ["http://store.invalid", "http://127.0.0.1.invalid:9000"])
def test_http_is_for_this_machine_alone(
    simulator: Simulator,
    manifest: Path,
    s3_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    result = run(simulator, manifest, s3_bucket)
    assert result.status == 2
    assert "only HTTPS is safe" in result.err


@pytest.mark.parametrize(
    ("asked", "fault"),
    [(r"^HEAD .*\.v1\.", refuse(503, "SlowDown")), ("^POST .*uploadId", forget)],
    ids=["unproved", "unanswered"],
)
def test_a_long_body_that_is_not_known_to_be_whole_leaves_nothing(
    serve: Serve, tmp_path: Path, s3_bucket: Bucket, asked: str, fault: Fault
) -> None:
    simulator = serve(patients=1, images_per_patient=1, fixed_bytes=70_000_000)
    manifest = write_manifest(tmp_path / "one.csv", list(simulator.patient_ids()))
    s3_bucket.proxy.strike(asked, fault)
    done = run(simulator, manifest, s3_bucket)
    assert done.status == 0, done.err
    checked = bulkfetch("verify", f"{s3_bucket.url}/export")
    assert checked.status == 0, checked.out + checked.err
    assert not s3_bucket.unfinished_uploads()


def test_an_image_beside_a_strangers_is_put_once_though_it_is_not_proved_at_once(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    run(simulator, manifest, s3_bucket)
    path, sidecar, _ = next(found for found in images(s3_bucket.contents()) if found[2])
    file = f"{path.rpartition('/')[0]}/{sidecar['file']['path']}"
    remove(s3_bucket, path)
    put(s3_bucket, file, b"else's", overwrite=True)
    s3_bucket.proxy.strike(r"^PUT .*\.v1\.[0-9a-f]{6}-", with_another_tag)
    s3_bucket.proxy.strike(r"^HEAD .*\.v1\.[0-9a-f]{6}-", refuse(503, "SlowDown"))
    again = run(simulator, manifest, s3_bucket)
    assert again.status == 0, again.err
    assert sum(name.startswith(file.rpartition(".")[0]) for name in s3_bucket.contents()) == 3


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


def test_a_store_that_does_not_keep_whose_archive_it_is_is_not_written_to(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    async def lose_unseen(body: bytes, forward: Forward) -> Answer:
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        return Answer(headers=CIMultiDict({"ETag": f'"{digest}"'}))

    s3_bucket.proxy.strike(r"^PUT .*archive\.json", lose_unseen)
    result = run(simulator, manifest, s3_bucket)
    assert result.status == 4, result.err
    assert "archive.json is not there" in result.err
    assert not s3_bucket.contents()


def test_a_store_that_refuses_again_and_again_is_not_asked_for_ever(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulkfetch.stores.store._PATIENCE_S", 0)
    s3_bucket.proxy.strike("^PUT ", refuse(503, "SlowDown"), times=10**6)
    store = open_store(s3_bucket.url, retries=5)
    for mode in ("create", "overwrite"):
        with pytest.raises(StoreError, match="503"):
            store.put("object", b"", mode)
    assert s3_bucket.proxy.count("^PUT ") == 2


def test_a_listing_that_breaks_off_is_asked_for_again(s3_bucket: Bucket) -> None:
    put(s3_bucket, "export/object", b"")
    s3_bucket.proxy.strike("^GET .*list-type", break_off)
    _, found = open_store(s3_bucket.url, retries=1).level("export")
    assert [one.name for one in found] == ["object"]


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


async def failed_though_begun(_: bytes, forward: Forward) -> Answer:
    """Status 200 before it is done, and then it cannot be done: S3's answer to a copy."""
    body = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>no</Message></Error>"
    return Answer(body=body)


async def a_page_of_somebody(_: bytes, forward: Forward) -> Answer:
    """Status 200, and no answer of a store."""
    return Answer(body=b"<html>Welcome to the guests' network</html>")


def test_a_page_in_place_of_a_listing_is_no_sound_archive(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    run(simulator, manifest, s3_bucket)
    s3_bucket.proxy.strike(r"^GET .*list-type(?!.*bulkfetch)", a_page_of_somebody, times=100)
    checked = bulkfetch("verify", f"{s3_bucket.url}/export")
    assert checked.status == 4
    assert "not listed whole" in checked.err


def test_the_folder_that_a_console_makes_is_no_stray(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    put_by_key(s3_bucket, "export/")
    assert run(simulator, manifest, s3_bucket).status == 0
    checked = bulkfetch("verify", f"{s3_bucket.url}/export")
    assert checked.status == 0, checked.err


def test_a_name_that_keeps_all_others_from_being_listed_is_told_as_such(
    s3_bucket: Bucket,
) -> None:
    put_by_key(s3_bucket, "export/p-1//i-1.v1.jpg")
    with pytest.raises(OSError, match="has a name that cannot be read"):
        list(open_store(f"{s3_bucket.url}/export").objects())


def put_by_key(bucket: Bucket, key: str) -> None:
    """Put an empty object under a key that this project would never use."""
    request = urllib.request.Request(
        f"{bucket.store_url}/{bucket.name}/{key}", data=b"", method="PUT"
    )
    with urllib.request.urlopen(request):
        pass


def test_what_the_page_says_to_try_can_be_tried(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    page = (Path(__file__).parents[1] / "docs" / "buckets.md").read_text("utf-8")
    script = re.split("^```(?:sh)?\n", page.partition("## Try it")[2], flags=re.MULTILINE)[1]
    store, api = free_pair(), free_pair()
    script = script.replace("5555", str(store)).replace("8080", str(api))
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    done = subprocess.run(
        ["bash", "-m", "-e", "-c", f"trap 'kill $(jobs -p)' EXIT\n{script}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing is missing, changed or stray" in done.stderr
