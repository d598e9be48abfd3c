"""How long a run takes, what it asks for and what it leaves, reckoned; nothing is run.

python -m benchmarks.scale_model --patients 1e7 --api-latency-s 0.1 --storage-latency-s 0.2

A run is as slow as the slowest of its bounds, and has a start and an end besides. Numbers may be
written as 2e6. `docs/scale.md` says what is left out, and how near it comes to runs.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, fields
from statistics import NormalDist

# As the simulator's account has them, which a test holds these to.
IMAGE_LINE_BYTES, PATIENT_LINE_BYTES = 430, 212
SIDECAR_BYTES = 1490
# In the first line of a run, for every run before it.
HEAD_BYTES = 111
# A bucket: listed once for a patient, but in the first run; the image and its sidecar put one after
# the other.
LISTS_PER_PATIENT, PUTS_PER_IMAGE = 1, 2
# What a shard puts into a bucket a second: how far it is, and its lease.
PUTS_PER_SECOND = 1 + 1 / 5
_UNBOUNDED = math.inf


def _told(default: float, words: str) -> float:
    value: float = field(default=default, metadata={"help": words})
    return value


@dataclass(frozen=True)
class Job:
    """A run, or the shards of one side by side; seconds, bytes, and prices in whatever money."""

    patients: float = _told(2e6, "rows of the manifest")
    images_per_patient: float = _told(3, "in the mean")
    image_bytes: float = _told(200e3, "in the mean")
    queries_per_patient: float = _told(1, "more with --include-coverages")

    api_latency_s: float = _told(0.1, "an answer of the API, from its request to its end")
    storage_latency_s: float = _told(0.2, "an image, from its request to its last byte")
    destination_latency_s: float = _told(0, "a request to the bucket that is written to; 0 is none")
    bucket_puts_s: float = _told(_UNBOUNDED, "objects a second that the bucket takes")
    rate_limit: float = _told(_UNBOUNDED, "API requests a second, of all shards together")
    link_bytes_s: float = _told(_UNBOUNDED, "what a host's line carries a second")
    disk_images_s: float = _told(_UNBOUNDED, "images a second that a host's disk takes for good")

    hosts: float = _told(1, "machines, each with a line, a disk and cores of its own")
    shards: float = _told(1, "jobs on the manifest, all at once, over all hosts")
    processes: float = _told(1, "of each shard")
    cores: float = _told(2, "of each host")
    query_concurrency: float = _told(16, "of each shard")
    download_concurrency: float = _told(32, "of each shard")

    startup_s: float = _told(1, "of a process, to its first request")
    cpu_row_s: float = _told(5e-6, "CPU of a row read and checked: each shard reads all of them")
    cpu_patient_s: float = _told(150e-6, "CPU of a patient: its query, its line")
    cpu_image_s: float = _told(450e-6, "CPU of an image without its bytes")
    cpu_byte_s: float = _told(2.6e-9, "CPU of a byte: received, hashed, written")

    runs_before: float = _told(0, "in the archive, those of each shard counted")
    price_put: float = _told(0, "1,000 puts or lists")
    price_get: float = _told(0, "1,000 gets")
    price_gigabyte_month: float = _told(0, "keeping a gigabyte for a month")


@dataclass(frozen=True)
class Forecast:
    """What a job comes to.

    Attributes:
        bounds: the seconds that each bound alone would take; the largest is what is waited for.
        edges_s: before the first and after the last patient of a full pipeline.
        first_lines_bytes: of all shards' journals; each names every run before.
        cost_once, cost_month: of a bucket's requests, and of keeping what is there.
    """

    bounds: dict[str, float]
    edges_s: float
    queries: float
    downloads: float
    puts: float
    lists: float
    gets: float
    image_bytes: float
    sidecar_bytes: float
    journal_bytes: float
    first_lines_bytes: float
    files: float
    cost_once: float
    cost_month: float

    @property
    def bound(self) -> str:
        """What is waited for."""
        return max(self.bounds, key=lambda name: self.bounds[name])

    @property
    def seconds(self) -> float:
        """From the command to its end."""
        return self.edges_s + self.bounds[self.bound]


def reckon(job: Job) -> Forecast:
    """Return what a job comes to."""
    images = job.patients * job.images_per_patient
    bounds = _bounds(job, images)
    # The first query is made alone; and of two waits, only one is the bound.
    reading_s = job.startup_s + job.patients * job.cpu_row_s + _looking_back_s(job)
    edges_s = reading_s + 2 * job.api_latency_s + _image_s(job)
    seconds = edges_s + max(bounds.values())
    is_bucket = job.destination_latency_s > 0
    puts = PUTS_PER_IMAGE * images + PUTS_PER_SECOND * seconds * job.shards if is_bucket else 0.0
    looks = job.runs_before * job.shards if is_bucket else 0.0
    lists = LISTS_PER_PATIENT * job.patients + looks if looks else 0.0
    stored_bytes = images * (job.image_bytes + SIDECAR_BYTES)
    return Forecast(
        bounds=bounds,
        edges_s=edges_s,
        queries=job.patients * job.queries_per_patient,
        downloads=images,
        puts=puts,
        lists=lists,
        gets=looks,
        image_bytes=images * job.image_bytes,
        sidecar_bytes=images * SIDECAR_BYTES,
        journal_bytes=images * IMAGE_LINE_BYTES + job.patients * PATIENT_LINE_BYTES,
        first_lines_bytes=job.shards * job.runs_before * HEAD_BYTES,
        files=2 * images,
        cost_once=((puts + lists) * job.price_put + looks * job.price_get) / 1e3,
        cost_month=stored_bytes / 1e9 * job.price_gigabyte_month,
    )


def largest_share(patients: float, shards: float) -> float:
    """Return how many times the mean the largest of some shares of a manifest has, as expected.

    Who is in which share is chance. The largest of so many draws is by G. Blom (1958).
    """
    deviations = NormalDist().inv_cdf((shards - 0.375) / (shards + 0.25)) if shards > 1 else 0.0
    return 1 + deviations * math.sqrt((shards - 1) / patients)


def _bounds(job: Job, images: float) -> dict[str, float]:
    queries = job.patients * job.queries_per_patient
    cpu_s = job.patients * job.cpu_patient_s + images * (
        job.cpu_image_s + job.image_bytes * job.cpu_byte_s
    )
    # So many at once, each taking so long, is so many a second (J. D. C. Little, 1961).
    even = {
        "queries": queries * job.api_latency_s / (job.shards * job.query_concurrency),
        "downloads": images * _image_s(job) / (job.shards * job.download_concurrency),
        "rate limit": queries / job.rate_limit,
        "link": images * job.image_bytes / (job.hosts * job.link_bytes_s),
        "bucket": PUTS_PER_IMAGE * images / job.bucket_puts_s,
        "disk": images / (job.hosts * job.disk_images_s),
        "CPU": cpu_s / min(job.hosts * job.cores, job.shards * job.processes),
    }
    uneven = largest_share(job.patients, job.shards)
    return {name: seconds * uneven for name, seconds in even.items()}


def _image_s(job: Job) -> float:
    """How long one image has a download's place: until its sidecar is there."""
    return job.storage_latency_s + PUTS_PER_IMAGE * job.destination_latency_s


def _looking_back_s(job: Job) -> float:
    """How long a run reads the ends of those before: in a bucket a list and a get each, in turn."""
    return job.runs_before * 2 * job.destination_latency_s


def described(found: Forecast) -> str:
    """Return a forecast as lines for people."""
    bounds = ", ".join(f"{name} {time_text(s)}" for name, s in found.bounds.items() if s)
    lines = {
        "takes": f"{time_text(found.seconds)}, waiting for: {found.bound}",
        "each bound alone": bounds,
        "start and end": time_text(found.edges_s),
        "asked of the API": f"{found.queries:,.0f} queries, {found.queries / found.seconds:,.0f}/s",
        "asked of storage": f"{found.downloads:,.0f} images, {_size(found.image_bytes)}, "
        f"{_size(found.image_bytes / found.seconds)}/s",
        "left": f"{found.files:,.0f} files; sidecars {_size(found.sidecar_bytes)}, journals "
        f"{_size(found.journal_bytes)}, their first lines {_size(found.first_lines_bytes)}",
    }
    if found.puts:
        lines["asked of the bucket"] = (
            f"{found.puts:,.0f} puts, {found.lists:,.0f} lists, {found.gets:,.0f} gets"
        )
    if found.cost_once or found.cost_month:
        lines["costs"] = f"{found.cost_once:,.0f} once, {found.cost_month:,.0f} a month"
    return "\n".join(f"{name + ':':<21}{words}" for name, words in lines.items())


def time_text(seconds: float) -> str:
    """Return a time for people."""
    for unit_s, unit in ((3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(size_bytes: float) -> str:
    for unit_bytes, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:,.1f} {unit}"
    return f"{size_bytes / 1e3:,.1f} kB"


def main() -> None:
    """Print what the command line's job comes to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for each in fields(Job):
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=_number,
            default=each.default,
            metavar="N",
            help=f"{each.metadata['help']} ({each.default:g})",
        )
    try:
        found = reckon(Job(**vars(parser.parse_args())))
    except ZeroDivisionError:
        parser.error("only latencies, CPU, prices, images and earlier runs may be 0")
    print(described(found))


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    main()
