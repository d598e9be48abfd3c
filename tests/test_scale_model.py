"""The model of `benchmarks.scale_model`: its arithmetic, and its constants against a real run."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scale_model
from benchmarks.scale_model import Job, largest_share, reckon
from bulkfetch.models import Shard
from tests.conftest import Serve, download, write_manifest
from tests.stores import Bucket

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
NOTHING = Job(
    patients=1000, api_latency_s=0, storage_latency_s=0, startup_s=0, cpu_patient_s=0,
    cpu_image_s=0, cpu_byte_s=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("job", "bound", "seconds"),
    [
        # 1,000 queries of 0.1 s, ten at once; the first of them alone, and the last one's images.
        (replace(NOTHING, api_latency_s=0.1, query_concurrency=10), "queries", 10 + 0.2),
        (replace(NOTHING, storage_latency_s=0.2, download_concurrency=10), "downloads", 60 + 0.2),
        (replace(NOTHING, destination_latency_s=0.1, download_concurrency=10), "downloads", 60.2),
        (replace(NOTHING, rate_limit=50), "rate limit", 20),
        (replace(NOTHING, image_bytes=1e6, link_bytes_s=1e8), "link", 30),
        (replace(NOTHING, disk_images_s=600), "disk", 5),
        (replace(NOTHING, cpu_patient_s=0.01, cpu_image_s=0.01), "CPU", 40),
        (replace(NOTHING, cpu_image_s=0.01, cores=4, processes=3), "CPU", 10),
        (replace(NOTHING, cpu_image_s=0.01, cores=4, processes=9), "CPU", 7.5),
    ],
)
def test_each_bound_by_hand(job: Job, bound: str, seconds: float) -> None:
    found = reckon(job)
    assert found.bound == bound
    assert found.seconds == pytest.approx(seconds)


def test_more_hosts_and_shards_do_not_raise_the_accounts_limit() -> None:
    job = replace(NOTHING, patients=1e9, api_latency_s=0.1, storage_latency_s=0.1, rate_limit=100)
    many = replace(job, hosts=100, shards=100)
    assert reckon(many).seconds == pytest.approx(reckon(replace(many, hosts=1)).seconds)
    assert reckon(many).seconds == pytest.approx(1e7, rel=0.01)
    assert reckon(many).bounds["queries"] == pytest.approx(
        reckon(job).bounds["queries"] / 100, rel=0.01
    )


@given(st.integers(2, 40), st.integers(100, 3000))
def test_the_largest_share_is_about_as_large_as_those_that_the_hash_makes(
    shards: int, patients: int
) -> None:
    shares = [Shard(number, shards) for number in range(1, shards + 1)]
    found = statistics.mean(
        max(sum(share.holds(f"{turn}-{p}", None) for p in range(patients)) for share in shares)
        for turn in range(1)
    )
    mean = patients / shards
    # One draw of what is the mean of many: it strays by some of its deviations.
    assert abs(found - mean * largest_share(patients, shards)) < 6 * math.sqrt(mean) + 1


def test_one_share_is_the_whole() -> None:
    assert largest_share(1000, 1) == 1


def test_the_constants_are_those_of_a_run(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=60)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    for _ in range(2):
        assert download(simulator, manifest, archive).status == 0
    first, second = sorted(archive.glob(".bulkfetch/runs/*/journal.jsonl"))
    lines = defaultdict(list)
    for line in first.read_bytes().splitlines(keepends=True):
        lines[json.loads(line)["event"]].append(len(line))
    begun = [len(path.read_bytes().partition(b"\n")[0]) for path in (first, second)]
    sidecars = [path.stat().st_size for path in archive.glob("[!.]*/*.json")]
    for constant, found in (
        (scale_model.IMAGE_LINE_BYTES, statistics.mean(lines["image"])),
        (scale_model.PATIENT_LINE_BYTES, statistics.mean(lines["patient"])),
        (scale_model.SIDECAR_BYTES, statistics.mean(sidecars)),
        (scale_model.HEAD_BYTES, begun[1] - begun[0]),
    ):
        assert constant == pytest.approx(found, rel=0.05)


def test_a_bucket_is_asked_as_often_as_the_model_says(
    serve: Serve, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.export(monkeypatch)
    simulator = serve(patients=20)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    images = download(simulator, manifest, f"{bucket.url}/export").summary["images"]
    assert bucket.proxy.count("^PUT (?!.*bulkfetch)") == (
        scale_model.PUTS_PER_IMAGE * images["downloaded"] + images["not_uploaded"]
    )
    assert bucket.proxy.count("^GET .*list-type(?!.*bulkfetch)") == (
        scale_model.LISTS_PER_PATIENT * 20
    )
    assert bucket.proxy.count("^GET (?!.*list-type|.*bulkfetch)") == 0
    bucket.proxy.asked.clear()
    # Of each run before, the next one lists the folder and reads its journal's end.
    assert download(simulator, manifest, f"{bucket.url}/export").status == 0
    (run_id,) = {
        path.split("/")[3] for path in bucket.contents() if path.endswith("/journal.000001.jsonl")
        and f"runs%2F{path.split('/')[3]}%2F" in "".join(a.what for a in bucket.proxy.asked)
        and bucket.proxy.count(f"^GET .*{path.split('/')[3]}/journal")
    }  # fmt: skip
    assert bucket.proxy.count(f"^GET .*{run_id}") == 2
