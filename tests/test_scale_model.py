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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import model_check, scale_model, server
from benchmarks.scale_model import Job, largest_share, reckon
from benchmarks.server import Served
from bulkfetch.models import Shard
from tests.conftest import Serve, download, write_manifest
from tests.stores import Bucket

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
NOTHING = Job(
    patients=1000, api_latency_s=0, storage_latency_s=0, startup_s=0, cpu_row_s=0,
    cpu_patient_s=0, cpu_image_s=0, cpu_byte_s=0,
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
        (replace(NOTHING, bucket_puts_s=1000), "bucket", 6),
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


@pytest.mark.parametrize(("shards", "patients"), [(2, 1000), (8, 500), (40, 2000)])
def test_the_largest_share_is_about_as_large_as_the_hash_makes_it(
    shards: int, patients: int
) -> None:
    def largest(turn: int) -> int:
        ids = [f"{turn}-{number}" for number in range(patients)]
        return max(sum(Shard(n, shards).holds(i, None) for i in ids) for n in range(1, shards + 1))

    found = statistics.mean(map(largest, range(5))) * shards / patients
    assert largest_share(patients, shards) == pytest.approx(found, rel=0.15)


def commands() -> list[tuple[str, str]]:
    """The page's commands, each with what it shows of their output."""
    blocks = re.findall(r"^```\n\$ (python -m .*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    found = [block.replace("\\\n", "").partition("\n")[::2] for block in blocks]
    return [(command, out) for command, out in found]


@pytest.mark.parametrize(("command", "out"), commands())
def test_what_the_page_reckons_is_what_the_model_says(command: str, out: str) -> None:
    _, *words = shlex.split(command)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert done.stdout == out


def test_the_table_by_hosts_is_what_the_model_says() -> None:
    options = re.findall(r"--([a-z-]+) (\S+)", next(c for c, _ in commands() if "bucket" in c))
    told = {name.replace("-", "_"): float(value) for name, value in options}
    rows = re.findall(r"^\| ([0-9]+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for hosts, cells in rows:
        job = Job(**{**told, "hosts": float(hosts), "shards": float(hosts)})
        free = reckon(replace(job, bucket_puts_s=math.inf))
        times = [free, reckon(job), *(reckon(replace(job, rate_limit=r)) for r in (500, 100))]
        takes, *others = (scale_model.time_text(found.seconds) for found in times)
        asked = f"{free.queries / free.seconds:,.0f}"
        assert cells.split(" | ") == [takes, asked, *others]


@pytest.mark.parametrize("option", ["--hosts=0", "--patients=-1", "--shards=many", "--links=2"])
def test_what_cannot_be_reckoned_is_told_in_words(option: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_model", option],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", model_check.JOBS)
def test_each_job_of_the_check_waits_for_one_thing(name: str) -> None:
    bounds = sorted(reckon(model_check.JOBS[name]).bounds.values())
    assert bounds[-2] < 0.5 * bounds[-1]


@pytest.mark.parametrize(
    "name", ["long downloads", "a limit of 20 requests a second", "a line of 2 MB a second"]
)
def test_no_run_is_faster_than_its_bound(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(model_check.smaller(model_check.JOBS[name], 10), shards=2)
    if math.isfinite(job.link_bytes_s):
        job = replace(job, link_bytes_s=job.link_bytes_s / 4)

    @contextmanager
    def serving(**fields: Any) -> Iterator[Served]:
        with server.serving(tmp_path / "server", **fields) as served:
            monkeypatch.setenv("BULKFETCH_API_URL", served.url)
            monkeypatch.setenv("BULKFETCH_TOKEN", "benchmark")
            yield served

    took_s = model_check.measured_s(job, serving, lambda: nullcontext(tmp_path))
    # A shard's share is the larger by chance, and so the whole is never faster than both.
    assert took_s > max(reckon(job).bounds.values()) / largest_share(job.patients, job.shards)


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
    first = download(simulator, manifest, f"{bucket.url}/export").summary
    images = first["images"]
    assert bucket.proxy.count("^PUT (?!.*bulkfetch)") == (
        scale_model.PUTS_PER_IMAGE * images["downloaded"] + images["not_uploaded"]
    )
    of_a_patient = r"^GET .*list-type.*prefix=export(/|%2F)[^&.]"
    assert bucket.proxy.count(of_a_patient) == 0
    assert bucket.proxy.count("^GET (?!.*list-type|.*bulkfetch)") == 0
    bucket.proxy.asked.clear()
    # Of the run before, the next one lists the folder and reads its journal's end, which may
    # lie in two segments.
    assert download(simulator, manifest, f"{bucket.url}/export").status == 0
    assert bucket.proxy.count(f"^GET .*{first['run_id']}") in (2, 3)
    assert bucket.proxy.count(of_a_patient) == scale_model.LISTS_PER_PATIENT * 20
