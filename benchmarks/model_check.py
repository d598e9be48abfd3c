"""The model of `scale_model` against runs: jobs small enough to run here, each held up otherwise.

What waiting takes is reckoned from the job alone. What starting and computing take is measured just
before, in runs of other sizes, on the same machine as busy as it then is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import Cost, run
from benchmarks.peers import bulkfetch
from benchmarks.scale_model import Job
from benchmarks.server import IMAGES_PER_PATIENT, Served

IMAGE_BYTES = 20_000
_LARGE_BYTES = 200_000
_WAITING = Job(
    patients=400, images_per_patient=1, image_bytes=IMAGE_BYTES, api_latency_s=0.02,
    storage_latency_s=0.02,
)  # fmt: skip
_COMPUTING = Job(api_latency_s=0, storage_latency_s=0, query_concurrency=32)

JOBS = {
    "long queries": replace(_WAITING, api_latency_s=0.2, query_concurrency=8),
    "long queries, little at once": replace(
        _WAITING, patients=100, api_latency_s=0.1, query_concurrency=1
    ),
    "long downloads": replace(
        _WAITING, patients=120, images_per_patient=5, storage_latency_s=0.1, download_concurrency=6
    ),
    "a limit of 20 requests a second": replace(_WAITING, patients=200, rate_limit=20),
    "a line of 2 MB a second": replace(
        _WAITING, patients=150, images_per_patient=5, link_bytes_s=2e6
    ),
    "two processes": replace(
        _WAITING, patients=800, api_latency_s=0.2, query_concurrency=8, processes=2
    ),
    "three shards": replace(_WAITING, api_latency_s=0.2, query_concurrency=3, shards=3),
    "small images": replace(_COMPUTING, patients=4_000, images_per_patient=2, image_bytes=4e3),
    "larger images": replace(_COMPUTING, patients=500, images_per_patient=4, image_bytes=1e5),
}

Serving = Callable[..., AbstractContextManager[Served]]
Directory = Callable[[], AbstractContextManager[Path]]


def smaller(job: Job, divisor: int) -> Job:
    """Return a job with fewer patients, but some for each shard."""
    return replace(job, patients=max(20, job.patients // divisor))


def measured_s(job: Job, serving: Serving, directory: Directory) -> float:
    """Run a job, and return how long it took from the command to its end."""
    with serving(**_served(job)) as served, directory() as scratch:
        return _took_s(job, served, scratch / "out")


def calibrated(job: Job, serving: Serving, directory: Directory, divisor: int) -> Job:
    """Return a job with what starting it takes here and now; and computing, if it waits for that.

    They are seconds of the clock: of a processor as far as one process gets it now.
    """

    def took_s(job: Job, images: int, size_bytes: int = 100, patients: int = 0) -> float:
        fields = {"images": images, "size_bytes": size_bytes, "without_images": patients}
        with serving(**fields) as served, directory() as scratch:
            return _took_s(job, served, scratch / "out")

    def each(seconds: float, number: float) -> float:
        return max(0.0, seconds) / number

    startup_s = took_s(replace(_COMPUTING, shards=job.shards, processes=job.processes), 5)
    if job.api_latency_s:
        return replace(job, startup_s=startup_s)
    some, small, large = 4_000 // divisor, 2_500 // divisor, 500 // divisor
    patient_s = each(took_s(job, 5, patients=some) - startup_s, some)
    with_patient_s = each(took_s(job, small) - startup_s, small)
    with_bytes_s = each(took_s(job, large, _LARGE_BYTES) - startup_s, large)
    return replace(
        job,
        startup_s=startup_s,
        cpu_row_s=0.0,  # in the next
        cpu_patient_s=patient_s,
        cpu_image_s=max(0.0, with_patient_s - patient_s / IMAGES_PER_PATIENT),
        cpu_byte_s=max(0.0, with_bytes_s - with_patient_s) / _LARGE_BYTES,
    )


def _served(job: Job) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "images": round(job.patients * job.images_per_patient),
        "size_bytes": round(job.image_bytes),
        "images_per_patient": round(job.images_per_patient),
    }
    if job.api_latency_s:
        latency_s = (job.api_latency_s, job.storage_latency_s)
        fields |= {"latency_s": latency_s, "line_bytes_s": job.link_bytes_s}
    return fields


def _took_s(job: Job, served: Served, out: Path) -> float:
    shards = round(job.shards)
    commands = [
        bulkfetch(served, out, *_options(job), *([f"--shard={n}/{shards}"] if shards > 1 else []))
        for n in range(1, shards + 1)
    ]
    with ThreadPoolExecutor(shards) as together:
        costs: Sequence[Cost] = list(together.map(run, commands))
    return max(cost.wall_s for cost in costs)


def _options(job: Job) -> list[str]:
    options = [
        "--no-fsync",
        f"--processes={job.processes:.0f}",
        f"--query-concurrency={job.query_concurrency:.0f}",
        f"--download-concurrency={job.download_concurrency:.0f}",
    ]
    if job.rate_limit < math.inf:
        options.append(f"--rate-limit={job.rate_limit / job.shards}")
    return options
