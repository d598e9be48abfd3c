"""The main job into object stores: the same promises as on a disk."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bulkfetch.simulator import Simulator, parse_fault
from bulkfetch.stores import open_store
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    start_bulkfetch,
    write_manifest,
)
from tests.stores import (
    SECRET,
    SIGNATURE_WORDS,
    Bucket,
    Fault,
    break_off,
    damage,
    forget,
    hang_up,
    lose,
    refuse,
    refuse_signature,
)


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


FAULTS: Mapping[str, tuple[str, Fault]] = {
    "throttled": ("^PUT ", refuse(503, "SlowDown")),
    "conflict": ("^PUT ", refuse(409, "ConditionalRequestConflict")),
    "cut": (".", hang_up),
    "forgotten": ("^PUT ", forget),
    "damaged": ("^PUT ", damage),
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
    for path, data in s3_bucket.contents().items():
        there = tmp_path / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(data)
    (tmp_path / "export").chmod(0o700)
    sound = bulkfetch("verify", tmp_path / "export", "--manifest", manifest)
    assert sound.status == 0, sound.err
    again = download(simulator, manifest, tmp_path / "export")
    assert again.status == 0, again.err
    assert again.summary["images"]["downloaded"] == 0
    assert bulkfetch("verify", tmp_path / "export").status == 0


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
