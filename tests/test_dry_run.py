"""A dry run tells what the same run would do, exactly, and writes nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bulkfetch import verify
from bulkfetch.cli.forecast import _LINES_AT_MOST
from bulkfetch.simulator import Simulator
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    sidecars,
    start_bulkfetch,
    write_manifest,
)
from tests.faulty import balance, journal, listed, move, only_for, patient_of, uploaded

Row = tuple[str | None, str | None]


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a directory: its inode, when it was changed, and its bytes."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(directory.rglob("*"))
    }


def told(dry: Result) -> dict[Row, dict[str, Any]]:
    """What a dry run told of each row."""
    patients = [json.loads(line)["patient"] for line in dry.out.splitlines()[:-1]]
    found = {(patient["patient_id"], patient["coverage_id"]): patient for patient in patients}
    assert len(found) == len(patients)
    return found


def done(archive: Path, run_id: str) -> dict[Row, dict[str, Any]]:
    """What a run's journal says of each row, in the words of a dry run."""
    rows: dict[Row, dict[str, Any]] = {}
    for line in journal(archive, run_id):
        if line["event"] not in ("image", "unlisted", "patient"):
            continue
        key = line.get("patient_id"), line.get("coverage_id")
        row = rows.setdefault(key, {"images": Counter(), "to_do": set(), "unlisted": set()})
        image = line.get("image_id"), line.get("version"), line.get("directory")
        if line["event"] == "unlisted":
            row["unlisted"].add((*image, line["became"]))
        elif line["event"] == "image":
            row["images"][line["outcome"]] += 1
            if "sidecar" in line:
                row["to_do"].add((*image, line["outcome"] == "downloaded"))
        else:
            row["state"] = line["state"]
    return rows


def foretold(dry: Result) -> dict[Row, dict[str, Any]]:
    """The same, as a dry run told it."""
    return {
        key: {
            "state": patient["state"],
            "images": Counter({k: n for k, n in patient["images"].items() if n and k != "listed"}),
            "to_do": {
                (i["image_id"], i["version"], i["directory"], i["fetch"]) for i in patient["to_do"]
            },
            "unlisted": {
                (i["image_id"], i["version"], i["directory"], i["became"])
                for i in patient["unlisted"]
            },
        }
        for key, patient in told(dry).items()
    }


def agree(dry: Result, wet: Result) -> None:
    """Check that the sums of both are the same."""
    for name in ("patients", "images", "unlisted", "failed_by_kind", "duplicate_rows", "shard"):
        assert dry.summary[name] == wet.summary[name], name
    balance(dry.summary)
    sums: Counter[str] = Counter()
    for patient in told(dry).values():
        sums.update(patient["images"])
    assert sums == Counter(dry.summary["images"])
    fetched = [i for p in told(dry).values() for i in p["to_do"] if i["fetch"]]
    assert dry.summary["to_fetch"]["images"] == len(fetched) == wet.summary["images"]["downloaded"]
    assert wet.summary["to_fetch"] is None


def why(dry: Result) -> Counter[str]:
    return Counter(i["why"] for p in told(dry).values() for i in p["to_do"])


@pytest.fixture
def lived_in(serve: Serve, tmp_path: Path) -> tuple[Simulator, Path]:
    """An account whose archive is a night old, and to which everything happened meanwhile."""
    simulator = serve(patients=40)
    patients = list(simulator.patient_ids())
    archive = tmp_path / "archive"
    keys = iter(uploaded(simulator))
    uploaded_since, changed, new, fresh, gone, off, elsewhere, short, lost, torn = (
        next(keys) for _ in range(10)
    )
    simulator.patch_image(uploaded_since[0], status="PENDING")
    manifest = write_manifest(tmp_path / "patients.csv", patients[:35])
    assert download(simulator, manifest, archive).status == 0
    simulator.patch_image(uploaded_since[0])
    simulator.patch_image(changed[0], status="FAILED")
    move(simulator, new[0], display_name="another")
    move(simulator, fresh[0], file_name="another.jpg")
    simulator.remove_image(gone[0])
    move(simulator, off[0], deactivated=True)
    owner = patient_of(simulator, elsewhere[0])
    move(simulator, elsewhere[0], patient_id=next(p for p in patients if p != owner))
    held = sidecars(archive)
    files = {k: held[k]["_path"].parent / held[k]["file"]["path"] for k in (short, lost, torn)}
    os.truncate(files[short], 10)
    files[lost].unlink()
    held[torn]["_path"].write_text("{")
    same_size = next(keys)
    flipped = held[same_size]["_path"].parent / held[same_size]["file"]["path"]
    flipped.write_bytes(bytes(len(flipped.read_bytes())))
    write_manifest(manifest, patients)
    return simulator, manifest


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--force"],
        ["--side=FRONT"],
        ["--status=PENDING", "--status=FAILED"],
        ["--file-type=image/*"],
        ["--include-coverages"],
        ["--include-coverages", "--side=BACK"],
    ],
    ids=" ".join,
)
def test_a_dry_run_and_the_run_agree_about_every_patient_and_in_total(
    lived_in: tuple[Simulator, Path], options: list[str]
) -> None:
    simulator, manifest = lived_in
    archive = manifest.with_name("archive")
    before = snapshot(manifest.parent)
    stored = simulator.requests["storage"]
    dry = download(simulator, manifest, archive, "--dry-run", *options)
    assert dry.status == 0
    assert snapshot(manifest.parent) == before
    assert simulator.requests["storage"] == stored
    wet = download(simulator, manifest, archive, *options)
    assert wet.status == 0, wet.err
    assert foretold(dry) == done(archive, wet.summary["run_id"])
    agree(dry, wet)
    again = download(simulator, manifest, archive, "--dry-run", *options)
    assert not any(p["to_do"] or p["unlisted"] for p in told(again).values())
    if options == ["--force"]:
        assert verify(str(archive)).ok


def test_it_says_why(lived_in: tuple[Simulator, Path]) -> None:
    simulator, manifest = lived_in
    dry = download(simulator, manifest, manifest.with_name("archive"), "--dry-run")
    reasons = why(dry)
    assert reasons.keys() == {"new_image", "new_version", "uploaded", "changed", "damaged"}
    assert (reasons["uploaded"], reasons["damaged"], reasons["new_version"]) == (1, 3, 2)
    assert dry.summary["unlisted"] == {"gone": 1, "deactivated": 1, "moved": 1}


def test_shards_agree_each_with_its_own(lived_in: tuple[Simulator, Path]) -> None:
    simulator, manifest = lived_in
    archive = manifest.with_name("archive")
    for shard in ("1/2", "2/2"):
        dry = download(simulator, manifest, archive, "--dry-run", f"--shard={shard}")
        wet = download(simulator, manifest, archive, f"--shard={shard}")
        assert foretold(dry) == done(archive, wet.summary["run_id"])
        agree(dry, wet)


@pytest.mark.parametrize("template", ["{patient_id}", "{side}/{patient_hash}", "everything"])
def test_what_several_rows_list_is_counted_once_as_a_run_does(
    serve: Serve, tmp_path: Path, template: str
) -> None:
    simulator = serve(patients=25)
    patients = list(simulator.patient_ids())
    rows = [f"{patient}," for patient in patients]
    rows += [f"{p},{c}" for p in patients for c in simulator.coverage_ids(p)]
    rows += [f",{c}" for p in patients for c in simulator.coverage_ids(p)]
    manifest = tmp_path / "patients.csv"
    options = ["--include-coverages", f"--path-template={template}/{{image_id}}.v{{version}}"]
    for night in (rows[::2], rows):
        manifest.write_text("patient_id,coverage_id\n" + "\n".join(night) + "\n", encoding="utf-8")
        dry = download(simulator, manifest, tmp_path / "archive", "--dry-run", *options)
        wet = download(simulator, manifest, tmp_path / "archive", *options)
        agree(dry, wet)
        did = done(tmp_path / "archive", wet.summary["run_id"])
        for what in ("to_do", "unlisted"):
            before, after = (
                Counter(one for row in plan.values() for one in row[what])
                for plan in (foretold(dry), did)
            )
            assert before == after
        assert wet.summary["images"]["unchanged"] > 0
        simulator.remove_image(uploaded(simulator)[4][0])
        simulator.remove_image(uploaded(simulator)[9][0])


def test_the_size_is_that_of_the_sidecar_or_an_estimate_that_is_called_one(
    lived_in: tuple[Simulator, Path],
) -> None:
    simulator, manifest = lived_in
    archive = manifest.with_name("archive")
    held = {
        key: sidecar["file"]["size"]
        for key, sidecar in sidecars_but_for_torn(archive).items()
        if sidecar["file"]
    }
    dry = download(simulator, manifest, archive, "--dry-run")
    known = {
        (i["image_id"], i["version"]): i["size_bytes"]
        for p in told(dry).values()
        for i in p["to_do"]
        if i["size_bytes"] is not None
    }
    assert len(known) == 2
    assert known.items() <= held.items()
    sums = dry.summary["to_fetch"]
    assert (sums["sized"], sums["bytes"]) == (2, sum(known.values()))
    mean = (sums["estimated_bytes"] - sums["bytes"]) / (sums["images"] - 2)
    assert min(held.values()) < mean < max(held.values())
    assert 0 < sums["estimated_from"] < len(held)
    assert "an estimate for all is" in dry.err
    assert dry.summary["bytes"] == 0


def sidecars_but_for_torn(archive: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = {}
    for path in archive.glob("[!.]*/*.json"):
        if path.stat().st_size > 1:
            sidecar = json.loads(path.read_bytes())
            found[sidecar["image_id"], sidecar["version"]] = sidecar
    return found


def test_nothing_is_made_where_there_is_no_archive(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    for out in (tmp_path / "archive", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        before = snapshot(tmp_path)
        dry = download(simulator, manifest, out, "--dry-run")
        assert (dry.status, snapshot(tmp_path)) == (0, before)
        assert dry.summary["to_fetch"] == {
            "images": len(uploaded(simulator)), "sized": 0, "bytes": 0,
            "estimated_bytes": None, "estimated_from": 0,
        }  # fmt: skip
        assert "the API does not tell their size" in dry.err
        assert why(dry) == Counter(new_image=len(listed(simulator)))


def test_without_json_people_get_a_line_where_there_is_work_and_no_more_than_they_read(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=_LINES_AT_MOST + 50)
    patients = list(simulator.patient_ids())
    manifest = write_manifest(tmp_path / "patients.csv", patients)
    run: list[str | Path] = ["download", manifest, "--out", tmp_path / "archive", "--progress=none"]
    dry = bulkfetch(*run, "--dry-run", environment=credentials(simulator))
    assert not dry.out
    lines = [line for line in dry.err.splitlines() if line.startswith("patient ")]
    assert len(lines) == _LINES_AT_MOST
    assert dry.err.count("... and more") == 1
    assert all(": to fetch " in line or ": to note " in line for line in lines)
    assert bulkfetch(*run, environment=credentials(simulator)).status == 0
    image_id, _ = uploaded(simulator)[0]
    owner = patient_of(simulator, image_id)
    simulator.remove_image(image_id)
    dry = bulkfetch(*run, "--dry-run", environment=credentials(simulator))
    lines = [line for line in dry.err.splitlines() if line.startswith("patient ")]
    assert lines == [f"patient {owner}: to note 1 gone"]
    assert "1 gone; to be noted" in dry.err


def test_a_failed_query_is_told_and_is_status_1(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(faults=("images:400",))
    patients = list(simulator.patient_ids())
    only_for(monkeypatch, simulator, patients[3])
    manifest = write_manifest(tmp_path / "patients.csv", patients)
    before = snapshot(tmp_path)
    dry = download(simulator, manifest, tmp_path / "archive", "--dry-run", "--retries=1")
    assert (dry.status, snapshot(tmp_path)) == (1, before)
    failed = told(dry)[patients[3], None]
    assert (failed["state"], failed["kind"], failed["to_do"]) == ("failed", "status", [])
    assert "400" in failed["error"]
    assert dry.summary["patients"]["failed"] == 1
    assert dry.summary["failures"] is None
    assert [p["state"] for p in told(dry).values()].count("failed") == 1


def test_names_of_people_and_signed_urls_are_not_told(lived_in: tuple[Simulator, Path]) -> None:
    simulator, manifest = lived_in
    dry = download(simulator, manifest, manifest.with_name("archive"), "--dry-run")
    assert "X-Goog" not in dry.out + dry.err
    for image in listed(simulator).values():
        for name in ("file_name", "display_name"):
            assert not image[name] or str(image[name]) not in dry.out + dry.err


def test_a_reader_that_goes_away_ends_a_dry_run_without_a_traceback(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=2_000)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    run: list[str | Path] = ["download", manifest, "-o", tmp_path / "archive"]
    with start_bulkfetch([*run, "--dry-run", "--json"], credentials(simulator)) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdin
        process.stdin.close()
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(100) == 1
    assert "Traceback" not in err
    assert "Exception" not in err
    assert simulator.requests["images"] < 2_000
