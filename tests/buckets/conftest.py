"""Buckets to export into, and whom to export."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkfetch.simulator import Simulator
from tests.conftest import Serve, write_manifest
from tests.stores import Bucket


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
