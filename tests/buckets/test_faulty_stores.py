"""Stores that fail, refuse, lose, damage and lie: what is archived is whole, or it is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from multidict import CIMultiDict

from bulkfetch.simulator import Simulator
from bulkfetch.stores import StoreError, open_store
from tests.buckets.held import images, put, remove, run
from tests.conftest import Serve, bulkfetch, write_manifest
from tests.stores import (
    SECRET,
    SIGNATURE_WORDS,
    Answer,
    Bucket,
    Fault,
    Forward,
    break_off,
    damage,
    forget,
    hang_up,
    lose,
    refuse,
    refuse_signature,
)


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


def test_a_store_that_overwrites_is_refused(
    simulator: Simulator, manifest: Path, s3_bucket: Bucket
) -> None:
    s3_bucket.proxy.strike(r"^PUT .*lease\.json", lose, skip=1)
    result = run(simulator, manifest, s3_bucket)
    assert result.status == 4
    assert "If-None-Match" in result.err


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
