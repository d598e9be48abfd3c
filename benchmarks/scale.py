"""What is varied to see how a run scales: patients, latency, concurrency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.server import Served

IMAGE_BYTES = 20_000
QUERIES, DOWNLOADS = 32, 64
API_S, STORAGE_S = 0.05, 0.03
# How long a run is to take, about, where something is waited for.
TAKES_S = 6.0
PATIENTS_AT_MOST = 10_000


@dataclass(frozen=True)
class Case:
    """One run: what is served, and the options.

    Attributes:
        counted: what is to be told of a second.
        limit: the most of that a second by Little's law, where something is waited for.
    """

    served: dict[str, Any]
    options: Sequence[str]
    counted: Callable[[Served], int]
    limit: float | None = None


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one thing."""

    name: str
    title: str
    counted: str
    values: Sequence[int]
    case: Callable[[int, int], Case]
    is_logarithmic: bool = field(default=True)


def _patients(value: int, divisor: int) -> Case:
    patients = value // divisor
    images = max(5, patients // 20)
    served = {"images": images, "size_bytes": IMAGE_BYTES, "without_images": patients - images // 5}
    return Case(served, (), lambda served: served.patients)


def _latency(value: int, divisor: int) -> Case:
    api_s, storage_s = value / 1e3, 0.6 * value / 1e3
    return _waiting(api_s, storage_s, QUERIES, DOWNLOADS, divisor)


def _concurrency(value: int, divisor: int) -> Case:
    return _waiting(API_S, STORAGE_S, value, value, divisor)


def _waiting(api_s: float, storage_s: float, queries: int, downloads: int, divisor: int) -> Case:
    """One image a patient; so many at once, each taking so long, is so many a second."""
    limit = min(queries / api_s, downloads / storage_s) if api_s else None
    patients = PATIENTS_AT_MOST if limit is None else min(PATIENTS_AT_MOST, int(limit * TAKES_S))
    served = {
        "images": max(5, patients // divisor),
        "size_bytes": IMAGE_BYTES,
        "images_per_patient": 1,
        "latency_s": (api_s, storage_s),
    }
    options = (f"--query-concurrency={queries}", f"--download-concurrency={downloads}")
    return Case(served, options, lambda served: served.images, limit)


SWEEPS = (
    Sweep(
        "patients",
        "patients of whom one in a hundred has images, nginx, no latency",
        "patients",
        (1_000, 10_000, 100_000, 1_000_000),
        _patients,
    ),
    Sweep(
        "latency",
        f"ms an API answer, and 0.6 of it to the first byte; {QUERIES} queries, {DOWNLOADS} "
        "downloads at once",
        "images",
        (0, 10, 20, 50, 100, 200),
        _latency,
        is_logarithmic=False,
    ),
    Sweep(
        "concurrency",
        f"queries and as many downloads at once; {API_S * 1e3:.0f} ms an API answer, "
        f"{STORAGE_S * 1e3:.0f} ms to the first byte",
        "images",
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        _concurrency,
    ),
)
