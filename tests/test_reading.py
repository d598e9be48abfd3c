"""An archive as a program reads it, on a disk and in a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from bulkfetch import (
    Archive,
    ArchivedImage,
    ConfigurationError,
    DamagedError,
    UnlistedSidecar,
    reading,
)
from bulkfetch.simulator import Simulator
from tests.conftest import Serve, download, sidecars, write_manifest
from tests.faulty import move, patient_of, uploaded
from tests.stores import Bucket
from tests.test_unlisted import deactivated, moved

TEMPLATE = "{side}/{patient_hash}/{patient_id}/{image_id}.v{version}"


@pytest.fixture
def simulator(serve: Serve) -> Simulator:
    return serve(patients=8)


@pytest.fixture
def manifest(simulator: Simulator, tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))


class Made(NamedTuple):
    """An archive, and the images of it that changed."""

    out: str
    newer: str
    gone: str


@pytest.fixture(name="made", params=["disk", "s3", "template"])
def _made(
    request: pytest.FixtureRequest,
    simulator: Simulator,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Made:
    """An archive of everybody, after two nights: one image has a later version, one is gone."""
    options, made = ["--no-fsync"], str(tmp_path / "archive")
    if request.param == "template":
        options += ["--path-template", TEMPLATE]
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        bucket.export(monkeypatch)
        made = f"{bucket.url}/export"
    assert download(simulator, manifest, made, *options).status == 0
    newer, gone, *_ = (image_id for image_id, _ in uploaded(simulator))
    move(simulator, newer)
    deactivated(simulator, gone)
    assert download(simulator, manifest, made, *options).status == 0
    return Made(made, newer, gone)


async def all_of(archive: Archive) -> list[ArchivedImage]:
    return [image async for image in archive.images()]


async def test_every_image_is_there_with_its_states_and_its_bytes(
    simulator: Simulator, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_TOGETHER", 5)
    async with Archive(made.out) as archive:
        images = await all_of(archive)
        assert archive.identity.organization_id
        by_key = {(i.sidecar.image_id, i.sidecar.version): i for i in images}
        assert len(by_key) == len(images) > 15
        for (image_id, version), image in by_key.items():
            if image.path is None:
                assert image.sidecar.status != "UPLOADED"
                with pytest.raises(ValueError, match="has no file"):
                    await archive.read(image)
                continue
            data = await archive.read(image)
            assert data == simulator.stored_bytes(image_id, version)
            with await archive.open(image) as file:
                assert file.read() == data
        assert [key for key, image in by_key.items() if not image.is_latest] == [(made.newer, 1)]
        assert by_key[made.newer, 2].is_latest
        (revised,) = [image for image in images if len(image.states) > 1]
        assert revised.sidecar.image_id == made.gone
        assert isinstance(revised.sidecar, UnlistedSidecar)
        assert [state.deactivated for state in revised.states] == [False, True]
        runs = await archive.runs()
    assert [run.summary and run.summary.exit_code for run in runs] == [0, 0]
    assert sorted(runs, key=lambda run: run.run_id) == runs


async def test_one_patient_s_images_are_those_that_were_archived_as_theirs(
    simulator: Simulator, made: Made
) -> None:
    async with Archive(made.out) as archive:
        everybody_s = [image.sidecar for image in await all_of(archive)]
        for patient_id in simulator.patient_ids():
            theirs = {s.image_id for s in everybody_s if s.patient_id == patient_id}
            found = [image async for image in archive.images_of(patient_id)]
            assert {image.sidecar.image_id for image in found} == theirs
        assert [image async for image in archive.images_of("nobody")] == []


async def test_an_image_that_moved_is_still_among_those_of_its_patient(
    simulator: Simulator, manifest: Path, tmp_path: Path
) -> None:
    image_id, _ = uploaded(simulator)[0]
    patient_id = patient_of(simulator, image_id)
    assert download(simulator, manifest, tmp_path / "archive").status == 0
    moved(simulator, image_id)
    assert download(simulator, manifest, tmp_path / "archive").status == 0
    async with Archive(tmp_path / "archive") as archive:
        found = [i async for i in archive.images_of(patient_id) if i.sidecar.image_id == image_id]
    assert isinstance(found[0].sidecar, UnlistedSidecar)
    assert found[0].sidecar.patient_id != patient_id


async def test_damage_is_never_left_out_in_silence(
    simulator: Simulator, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "archive"
    assert download(simulator, manifest, out).status == 0
    torn, changed, missing, *_ = [s["_path"] for s in sidecars(out).values() if s["file"]]
    whole = len(sidecars(out))
    torn.write_bytes(torn.read_bytes()[:-9])
    for path, what in ((changed, b"other bytes"), (missing, None)):
        (file,) = [p for p in path.parent.glob(f"{path.stem}.*") if p.suffix != ".json"]
        file.unlink() if what is None else file.write_bytes(what)
    (out / "notes.txt").write_text("a stray")
    found: list[DamagedError] = []
    async with Archive(out) as archive:
        with pytest.raises(DamagedError, match="no sidecar"):
            await all_of(archive)
        images = [image async for image in archive.images(damaged=found.append)]
        assert [error.path for error in found] == [str(torn.relative_to(out))]
        assert len(images) == whole - 1
        said = []
        for image in images:
            if image.path:
                try:
                    await archive.read(image)
                except DamagedError as error:
                    said.append(str(error).partition(": ")[2])
        assert sorted(said) == [
            "it is missing: run bulkfetch verify",
            "its bytes are not those that were archived: run bulkfetch verify",
        ]


async def test_whatever_lies_in_the_place_of_a_file_is_damage_and_keeps_from_nothing_else(
    simulator: Simulator, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "archive"
    assert download(simulator, manifest, out).status == 0
    folder, pipe, changed, linked, *_ = (s for s in sidecars(out).values() if s["file"])
    whole = len(sidecars(out))
    for sidecar, make in ((folder, os.mkdir), (pipe, os.mkfifo)):
        sidecar["_path"].unlink()
        make(sidecar["_path"])
    text = changed["_path"].read_text()
    size = changed["file"]["size"]
    changed["_path"].write_text(text.replace(f'"size": {size}', f'"size": {10**20}'))
    file = linked["_path"].parent / linked["file"]["path"]
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    found: list[DamagedError] = []
    async with Archive(out) as archive:
        images = [image async for image in archive.images(damaged=found.append)]
        assert len(images) == whole - 2
        assert {error.path for error in found} == {
            str(sidecar["_path"].relative_to(out)) for sidecar in (folder, pipe)
        }
        for image in images:
            if image.sidecar.image_id in (linked["image_id"], changed["image_id"]):
                with pytest.raises(DamagedError):
                    await archive.read(image)


async def test_a_sidecar_leads_to_no_file_but_its_own(
    simulator: Simulator, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "archive"
    assert download(simulator, manifest, out).status == 0
    path = next(s["_path"] for s in sidecars(out).values() if s["file"])
    name = path.name.removesuffix(".json")
    planted = path.read_text().replace(f'"path": "{name}', f'"path": "../../{name}')
    path.write_text(planted)
    async with Archive(out) as archive:
        with pytest.raises(DamagedError, match="not its own"):
            await all_of(archive)


async def test_where_no_archive_is_there_is_none_to_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no archive"):
        async with Archive(tmp_path):
            pass
