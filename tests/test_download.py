"""The main job, as its users run it: the real command against the simulator."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from bulkfetch.simulator import LEAKED_TOKENS, Simulator, parse_fault
from tests.conftest import (
    Serve,
    bulkfetch,
    credentials,
    download,
    sidecars,
    start_bulkfetch,
    write_manifest,
)

SIDECAR_KEYS = [
    "schema_version", "image_id", "patient_id", "coverage_id", "version", "status", "deactivated",
    "outcome", "file", "source", "record", "requested", "manifest", "fetched_at", "run_id",
    "bulkfetch_version",
]  # fmt: skip


def balance(summary: dict[str, Any]) -> None:
    patients, images = dict(summary["patients"]), dict(summary["images"])
    assert patients.pop("total") == sum(patients.values())
    assert images.pop("listed") == sum(images.values())


def expected(simulator: Simulator) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (str(image["id"]), int(str(image["version"]))): dict(image)
        for patient_id in simulator.patient_ids()
        for image in simulator.expected_images(patient_id)
    }


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "patients.csv"


def test_every_listed_image_is_in_the_archive_with_its_bytes(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=25)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive")

    assert result.status == 0, result.err
    balance(result.summary)
    assert result.summary["patients"]["total"] == 25
    truth, found = expected(simulator), sidecars(tmp_path / "archive")
    assert found.keys() == truth.keys()
    for key, sidecar in found.items():
        assert list(sidecar)[:-1] == SIDECAR_KEYS
        assert sidecar["status"] == truth[key]["status"]
        assert sidecar["record"] == truth[key]
        assert (sidecar["outcome"] == "downloaded") == (sidecar["status"] == "UPLOADED")
        if sidecar["outcome"] == "not_uploaded":
            assert sidecar["file"] is None
            continue
        data = (sidecar["_path"].parent / sidecar["file"]["path"]).read_bytes()
        assert data == simulator.stored_bytes(*key)
        assert sidecar["file"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert sidecar["file"]["size"] == len(data)
        assert sidecar["source"]["crc32c"]


def test_a_second_run_fetches_no_bytes_and_changes_no_file(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    archive = tmp_path / "archive"
    write_manifest(manifest, list(simulator.patient_ids()))
    first = download(simulator, manifest, archive).summary
    before = {path: path.stat().st_mtime_ns for path in archive.glob("[!.]*/*")}
    stored = simulator.requests["storage"]
    second = download(simulator, manifest, archive).summary

    assert simulator.requests["storage"] == stored
    assert {path: path.stat().st_mtime_ns for path in archive.glob("[!.]*/*")} == before
    assert second["images"]["unchanged"] == first["images"]["downloaded"] > 0
    assert second["images"]["downloaded"] == second["bytes"] == 0
    balance(second)


def test_the_archive_is_private_to_its_owner(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    download(simulator, manifest, tmp_path / "archive")
    for path in [tmp_path / "archive", *(tmp_path / "archive").rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_token_never_goes_to_storage(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    assert download(simulator, manifest, tmp_path / "archive").status == 0
    assert simulator.requests["storage"] > 0
    assert simulator.requests[LEAKED_TOKENS] == 0
    assert simulator.requests["token"] == 1


def test_no_signed_url_token_or_secret_is_in_any_file_or_line(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(faults=(parse_fault("storage:503@30%"), parse_fault("storage:403@10%")))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", "--log-level=debug")
    everything = result.out + result.err
    for path in (tmp_path / "archive").rglob("*.*"):
        if path.suffix in (".json", ".jsonl", ".csv"):
            everything += path.read_text(encoding="utf-8")
    assert "X-Goog-Signature" not in everything
    assert "signed_url" not in everything
    assert simulator.config.client_secret not in everything
    assert "eyJ" not in everything


def test_extra_columns_are_carried_into_the_sidecar(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    patient_id = next(p for p in simulator.patient_ids() if simulator.expected_images(p))
    manifest.write_text(f"chart,patient_id,bulkfetch_kind\n007,{patient_id},x\n", encoding="utf-8")
    assert download(simulator, manifest, tmp_path / "archive").status == 0
    for sidecar in sidecars(tmp_path / "archive").values():
        assert sidecar["manifest"] == {"chart": "007"}
        assert sidecar["requested"] == {"patient_id": patient_id, "coverage_id": None}


def test_a_repeated_row_is_fetched_once_and_said(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    patient_id = next(simulator.patient_ids())
    write_manifest(manifest, [patient_id, patient_id])
    result = download(simulator, manifest, tmp_path / "archive")
    assert simulator.requests["images"] == 1
    assert result.summary["patients"]["total"] == 1
    assert "were fetched once: 1" in result.err


def test_coverage_rows_and_include_coverages_find_images_of_a_coverage_alone(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=40)
    coverage_only = [
        (patient_id, coverage_id, image)
        for patient_id in simulator.patient_ids()
        for coverage_id in simulator.coverage_ids(patient_id)
        for image in simulator.expected_images(coverage_id=coverage_id)
        if not image.get("patient")
    ]
    assert coverage_only
    patient_id, coverage_id, image = coverage_only[0]

    manifest.write_text(f"coverage_id\n{coverage_id}\n", encoding="utf-8")
    assert download(simulator, manifest, tmp_path / "by-coverage").status == 0
    assert (tmp_path / "by-coverage" / f"coverage-{coverage_id}").is_dir()

    write_manifest(manifest, [patient_id])
    assert download(simulator, manifest, tmp_path / "without").status == 0
    assert image["id"] not in {key[0] for key in sidecars(tmp_path / "without")}
    assert download(simulator, manifest, tmp_path / "with", "--include-coverages").status == 0
    found = {key[0]: sidecar for key, sidecar in sidecars(tmp_path / "with").items()}
    assert found[str(image["id"])]["_path"].parent.name == patient_id


def test_a_merged_patients_images_are_kept_under_their_own_patient_with_a_warning(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    old, new = [p for p in simulator.patient_ids() if simulator.expected_images(p)][:2]
    simulator.merge_patient(old, new)
    write_manifest(manifest, [old, new])
    result = download(simulator, manifest, tmp_path / "archive")
    assert result.status == 0
    assert {s["_path"].parent.name for s in sidecars(tmp_path / "archive").values()} == {new}
    assert old in result.err
    assert new in result.err
    balance(result.summary)


def test_one_patients_failure_stops_no_other_and_is_named(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    ids = list(simulator.patient_ids())
    bad = next(p for p in ids[1:] if simulator.expected_images(p))
    image = str(simulator.expected_images(bad)[0]["id"])
    simulator.patch_image(image, version="three")
    manifest.write_text(
        "patient_id,note\n" + "".join(f'{p},"a ""quoted"", note"\n' for p in ids), encoding="utf-8"
    )
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive)

    assert result.status == 1
    balance(result.summary)
    assert result.summary["patients"]["failed"] == 1
    (failures,) = archive.glob(".bulkfetch/runs/*/failures.csv")
    with failures.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["patient_id"] == bad
    assert row["note"] == 'a "quoted", note'
    assert row["bulkfetch_kind"] == "bad_response"
    assert str(failures) in result.err

    simulator.patch_image(image)
    again = download(simulator, failures, archive)
    assert again.status == 0
    assert again.summary["patients"]["total"] == 1
    assert set(expected(simulator)) == set(sidecars(archive))
    assert sidecars(archive)[image, expected_version(simulator, image)]["manifest"] == {
        "note": 'a "quoted", note'
    }


def expected_version(simulator: Simulator, image_id: str) -> int:
    return next(version for found, version in expected(simulator) if found == image_id)


def test_journal_and_summary_tell_every_patient_and_image(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    summary = download(simulator, manifest, archive).summary
    run = archive / ".bulkfetch" / "runs" / summary["run_id"]
    assert json.loads((run / "summary.json").read_bytes()) == summary
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "run_started"
    assert lines[-1]["event"] == "run_finished"
    patients = [line for line in lines if line["event"] == "patient"]
    assert {line["patient_id"] for line in patients} == set(simulator.patient_ids())
    images = {(line["image_id"], line["version"]) for line in lines if line["event"] == "image"}
    assert images == set(expected(simulator))
    names = [image["display_name"] for image in expected(simulator).values()]
    journal = (run / "journal.jsonl").read_text(encoding="utf-8")
    assert not any(name and name in journal for name in map(str, names))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--side", "FRONT"], lambda image: (image["coverage"] or {}).get("side") == "FRONT"),
        (["--file-type", "image/*"], lambda image: image["file_type"].startswith("image/")),
        (["--status", "PENDING"], lambda image: image["status"] == "PENDING"),
        (["--updated-since", "2199-01-01"], lambda _: False),
    ],
)
def test_filters_choose_images_count_the_others_and_are_recorded(
    serve: Serve, tmp_path: Path, manifest: Path, options: list[str], wanted: Any
) -> None:
    simulator = serve(patients=30)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", *options)
    truth = expected(simulator)
    chosen = {key for key, image in truth.items() if wanted(image)}
    assert set(sidecars(tmp_path / "archive")) == chosen
    assert result.summary["images"]["filtered"] == len(truth) - len(chosen) > 0
    balance(result.summary)
    option, value = options
    ((name, (recorded,)),) = result.summary["filters"].items()
    assert option == "--" + name.replace("_", "-")
    assert recorded.startswith(value)
    assert re.search(rf"^filtered by {option} '?{re.escape(value)}", result.err, re.MULTILINE)
    (journal,) = (tmp_path / "archive").glob(".bulkfetch/runs/*/journal.jsonl")
    begin = json.loads(journal.read_text().partition("\n")[0])
    assert begin["filters"] == result.summary["filters"]


def test_a_dry_run_writes_nothing_and_says_what_a_run_would_do(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    dry = download(simulator, manifest, tmp_path / "archive", "--dry-run")
    assert not (tmp_path / "archive").exists()
    assert simulator.requests["storage"] == 0
    wet = download(simulator, manifest, tmp_path / "archive")
    assert dry.summary["images"] == wet.summary["images"]
    assert dry.summary["patients"] == wet.summary["patients"]
    assert dry.summary["dry_run"]


def test_a_pending_image_that_was_uploaded_without_a_new_version_is_fetched(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=40)
    truth = expected(simulator)
    image_id, version = next(key for key, i in truth.items() if i["status"] == "UPLOADED")
    simulator.patch_image(image_id, status="PENDING")
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    download(simulator, manifest, archive)
    first = sidecars(archive)[image_id, version]
    assert first["outcome"] == "not_uploaded"

    simulator.patch_image(image_id)
    assert download(simulator, manifest, archive).summary["images"]["downloaded"] == 1
    second = sidecars(archive)[image_id, version]
    assert second["_path"].name == f"{image_id}.v{version}.r2.json"
    assert second["outcome"] == "downloaded"
    assert json.loads(first["_path"].read_bytes())["outcome"] == "not_uploaded"

    assert download(simulator, manifest, archive).summary["images"]["downloaded"] == 0


@pytest.mark.parametrize("damage", ["sidecar torn", "file gone", "file short"])
def test_what_is_damaged_goes_to_quarantine_and_is_fetched_anew(
    serve: Serve, tmp_path: Path, manifest: Path, damage: str
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    download(simulator, manifest, archive)
    key, sidecar = next(
        (k, s) for k, s in sidecars(archive).items() if s["outcome"] == "downloaded"
    )
    file = sidecar["_path"].parent / sidecar["file"]["path"]
    if damage == "sidecar torn":
        sidecar["_path"].write_bytes(sidecar["_path"].read_bytes()[:100])
    elif damage == "file gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])

    result = download(simulator, manifest, archive)
    assert result.status == 0
    assert result.summary["images"]["downloaded"] == 1
    assert file.read_bytes() == simulator.stored_bytes(*key)
    quarantined = {path.name for path in archive.glob(".bulkfetch/quarantine/*/*/*")}
    assert sidecar["_path"].name in quarantined
    assert (file.name in quarantined) == (damage != "file gone")


def test_force_finds_a_changed_file_of_the_same_size(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    download(simulator, manifest, archive)
    key, sidecar = next(
        (k, s) for k, s in sidecars(archive).items() if s["outcome"] == "downloaded"
    )
    file = sidecar["_path"].parent / sidecar["file"]["path"]
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert download(simulator, manifest, archive).summary["images"]["downloaded"] == 0
    assert download(simulator, manifest, archive, "--force").summary["images"]["downloaded"] == 1
    assert file.read_bytes() == simulator.stored_bytes(*key)


def test_an_expired_signed_url_is_asked_for_anew(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(faults=(parse_fault("storage:expiredx1"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive")
    assert result.status == 0
    assert simulator.requests["image"] == result.summary["images"]["downloaded"] > 0


def test_a_dead_token_is_renewed_once_for_all(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve(patients=40, api_latency_s=0.02, token_lifetime_s=3600)
    write_manifest(manifest, list(simulator.patient_ids()))
    simulator.faults.add(parse_fault("coverages:token-deathx1"))
    result = download(simulator, manifest, tmp_path / "archive", "--include-coverages")
    assert result.status == 0, result.err
    assert 1 < simulator.requests["token"] <= 1 + simulator.requests["coverages"]
    assert simulator.peak_in_flight["token"] == 1


def test_standard_input_is_a_manifest(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    ids = "\n".join(simulator.patient_ids()).encode()
    result = bulkfetch(
        "download", "-", "--manifest-format", "txt", "--out", tmp_path / "archive", "--json",
        environment=credentials(simulator), stdin=gzip.compress(ids),
    )  # fmt: skip
    assert result.status == 0
    assert result.summary["patients"]["total"] == 12


def test_fail_fast_stops_and_counts_what_was_not_reached(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=60, faults=(parse_fault("images:wrong-shape"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(
        simulator, manifest, tmp_path / "archive", "--fail-fast", "--query-concurrency=1",
        "--download-concurrency=1",
    )  # fmt: skip
    assert result.status == 1
    assert result.summary["patients"]["failed"] >= 1
    assert result.summary["patients"]["not_reached"] > 0
    assert not result.summary["interrupted"]
    balance(result.summary)


def test_too_large_a_file_is_a_failure_that_names_the_option(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", "--max-file-size=1kB")
    assert result.status == 1
    assert "--max-file-size" in result.err
    assert result.summary["images"]["downloaded"] == 0


def test_an_archive_of_another_organization_is_refused(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    ours = serve()
    write_manifest(manifest, list(ours.patient_ids()))
    download(ours, manifest, tmp_path / "archive")
    theirs = serve(organization_id="another-organization")
    result = download(theirs, manifest, tmp_path / "archive")
    assert result.status == 2
    assert "another-organization" in result.err


def test_options_come_from_command_line_then_environment_then_file(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    write_manifest(manifest, list(simulator.patient_ids()))
    config = tmp_path / "bulkfetch.toml"
    config.write_text('status = ["FAILED"]\nside = ["FRONT"]\njson = true\nprogress = "none"\n')
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--config", config,
        environment={**credentials(simulator), "BULKFETCH_STATUS": "PENDING"},
    )  # fmt: skip
    assert result.status == 0
    assert result.summary["images"]["filtered"] > 0
    for sidecar in sidecars(tmp_path / "archive").values():
        assert sidecar["status"] == "PENDING"
        assert sidecar["record"]["coverage"]["side"] == "FRONT"


def test_a_manifest_that_changes_during_the_run_ends_it_with_status_2(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=3000, api_latency_s=0.05)
    write_manifest(manifest, list(simulator.patient_ids()))
    with start_bulkfetch(
        ["download", manifest, "--out", tmp_path / "archive", "--json"], credentials(simulator)
    ) as process:
        while simulator.requests["images"] < 20:
            assert process.poll() is None
            time.sleep(0.02)
        with manifest.open("a") as file:
            file.write("one-more\n")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert b"changed" in err
    assert b"Traceback" not in err
    balance(json.loads(out))


def two_rows_of_one_image(simulator: Simulator, path: Path) -> tuple[Path, dict[str, Any]]:
    """A manifest in which a patient's row and a coverage's list the same image."""
    image = next(
        image
        for patient in simulator.patient_ids()
        for image in simulator.expected_images(patient)
        if image["status"] == "UPLOADED" and image["coverage"] and image["patient"]
    )
    patient, coverage = image["patient"]["id"], image["coverage"]["id"]
    path.write_text(f"patient_id,coverage_id\n{patient},\n,{coverage}\n", encoding="utf-8")
    return path, image


@pytest.mark.parametrize("at_once", [1, 8])
def test_an_image_that_two_rows_list_is_fetched_once(
    serve: Serve, tmp_path: Path, at_once: int
) -> None:
    simulator = serve(patients=20, storage_latency_s=0.1)
    manifest, image = two_rows_of_one_image(simulator, tmp_path / "two.csv")
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, f"--download-concurrency={at_once}")
    assert result.status == 0, result.err
    found = sidecars(archive)
    state = found[image["id"], image["version"]]
    # Whichever of the two was answered first.
    assert state["requested"] in (
        {"patient_id": image["patient"]["id"], "coverage_id": None},
        {"patient_id": None, "coverage_id": image["coverage"]["id"]},
    )
    files = [sidecar for sidecar in found.values() if sidecar["file"]]
    images = result.summary["images"]
    assert simulator.requests["storage"] == len(files) == images["downloaded"]
    # Each listing has its outcome, and in an empty archive nothing else is unchanged.
    both = result.summary["listed_again"]
    assert both >= images["unchanged"] >= 1
    assert images["listed"] == len(found) + both
    assert f"counted at each and fetched once: {both} image" in result.err
    balance(result.summary)

    again = download(simulator, manifest, archive)
    assert again.summary["listed_again"] == 0
    assert again.summary["images"]["unchanged"] == images["downloaded"] + images["unchanged"]

    # Damaged, it is moved away once, and what is fetched anew stays.
    path = state["_path"].with_name(state["file"]["path"])
    good = path.read_bytes()
    path.write_bytes(good + b"damage")
    result = download(simulator, manifest, archive, f"--download-concurrency={at_once}")
    assert result.status == 0, result.err
    assert path.read_bytes() == good
    (kept,) = archive.glob(f".bulkfetch/quarantine/*/*/{path.name}*")
    assert kept.read_bytes() == good + b"damage"
