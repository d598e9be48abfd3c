"""The Python API: what the command line does, in a few lines."""

from __future__ import annotations

import asyncio
import doctest
import os
from pathlib import Path

import pytest

import bulkfetch
from bulkfetch import Settings, library
from tests.conftest import Serve, credentials, sidecars, write_manifest


@pytest.fixture
def at_home(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a manifest, and an environment that leads to a simulator."""
    simulator = serve()
    for name, value in credentials(simulator).items():
        monkeypatch.setenv(name, value)
    write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("at_home")
def test_the_example_in_the_docstring_is_true() -> None:
    results = doctest.testmod(library)
    assert results.attempted == 4
    assert results.failed == 0


async def test_the_async_twin_does_the_same(at_home: Path) -> None:
    summary = await bulkfetch.download_async("patients.csv", Settings(out="archive"))
    assert summary.exit_code == 0
    assert len(sidecars(at_home / "archive")) == summary.images.listed > 0


async def test_cancelling_is_safe(serve: Serve, at_home: Path) -> None:
    slow = serve(patients=50, storage_latency_s=0.2)
    write_manifest(at_home / "patients.csv", list(slow.patient_ids()))
    settings = Settings(out="archive", api_url=slow.api_url, download_concurrency=2)
    task = asyncio.create_task(bulkfetch.download_async("patients.csv", settings))
    while slow.requests["storage"] < 4:  # noqa: ASYNC110  counted in another thread
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(at_home.glob("archive/.bulkfetch/runs/*/summary.json"))  # noqa: ASYNC240  a test
    summary = await bulkfetch.download_async("patients.csv", Settings(
        out="archive", api_url=slow.api_url))  # fmt: skip
    assert summary.patients.not_reached == summary.patients.failed == 0
    assert summary.images.unchanged > 0


def test_a_failed_patient_is_counted_and_no_exception(serve: Serve, at_home: Path) -> None:
    broken = serve()
    patient_id = list(broken.patient_ids())[-1]
    image = next(
        i for p in broken.patient_ids() for i in broken.expected_images(p) if p != patient_id
    )
    broken.patch_image(str(image["id"]), status=None)
    summary = bulkfetch.download("patients.csv", Settings(out="archive", api_url=broken.api_url))
    assert summary.exit_code == summary.patients.failed == 1


@pytest.mark.usefixtures("at_home")
def test_errors_are_of_one_tree() -> None:
    with pytest.raises(bulkfetch.ManifestError):
        bulkfetch.download("nowhere.csv", Settings(out="archive"))
    with pytest.raises(bulkfetch.DestinationError):
        bulkfetch.download("patients.csv", Settings(out="patients.csv"))
    assert issubclass(bulkfetch.ManifestError, bulkfetch.BulkfetchError)


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("out", [os.fsdecode(b"caf\xe9"), "a\0b"])
def test_an_archive_that_no_summary_could_tell_of_is_refused(out: str) -> None:
    with pytest.raises(bulkfetch.DestinationError, match="no path in UTF-8"):
        bulkfetch.download("patients.csv", Settings(out=out))
    assert not Path(out.partition("\0")[0]).exists()


@pytest.mark.usefixtures("at_home")
def test_a_link_that_leads_to_itself_is_no_place_for_an_archive() -> None:
    Path("loop").symlink_to("loop")
    with pytest.raises(bulkfetch.DestinationError, match="loop"):
        bulkfetch.download("patients.csv", Settings(out="loop"))
