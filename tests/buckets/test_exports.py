"""The main job into object stores: the same promises as on a disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bulkfetch.simulator import Simulator, parse_fault
from bulkfetch.stores import open_store
from tests.buckets.held import images, put, remove, run
from tests.conftest import Result, Serve, bulkfetch, credentials, download, write_manifest
from tests.pages import free_pair
from tests.stores import Bucket, refuse
from tests.test_bag import validate


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
    page = (Path(__file__).parents[2] / "docs" / "buckets.md").read_text("utf-8")
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
