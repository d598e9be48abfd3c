"""The main job into object stores: the same promises as on a disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkfetch.simulator import Simulator
from tests.conftest import Result, Serve, download, write_manifest
from tests.stores import SECRET, Bucket


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


def images(contents: dict[str, bytes]) -> Iterator[tuple[str, dict[str, object], bytes | None]]:
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
