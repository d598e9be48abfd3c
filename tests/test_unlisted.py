"""Images that the archive has and the API lists no longer: what became of each is noted."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bulkfetch import verify
from bulkfetch.simulator import Simulator
from bulkfetch.simulator.api import _ERROR_NAMES
from tests.conftest import Result, Serve, credentials, download, start_bulkfetch, write_manifest
from tests.faulty import balance, failures, in_turn, journal, listed, move, patient_of, uploaded


@dataclass
class Account:
    """A simulator, a manifest of all of its patients, and an archive of them."""

    simulator: Simulator
    manifest: Path
    archive: Path

    def night(self, *options: str, status: int = 0) -> Result:
        result = download(self.simulator, self.manifest, self.archive, *options)
        assert result.status == status, result.err
        balance(result.summary)
        return result

    def sidecar(self, image_id: str, version: int, revision: int) -> Path:
        ending = "json" if revision == 1 else f"r{revision}.json"
        (found,) = self.archive.glob(f"[!.]*/{image_id}.v{version}.{ending}")
        return found

    def state(self, image_id: str, version: int, revision: int) -> dict[str, Any]:
        state = json.loads(self.sidecar(image_id, version, revision).read_bytes())
        assert isinstance(state, dict)
        return state


@pytest.fixture
def account(serve: Serve, tmp_path: Path) -> Account:
    simulator = serve(patients=30)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    made = Account(simulator, manifest, tmp_path / "archive")
    made.night()
    return made


def revisions(archive: Path) -> list[Path]:
    return list(archive.rglob("*.r[0-9]*.json"))


def contents(archive: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in archive.glob("[!.]*/*")}


def deactivated(simulator: Simulator, image_id: str) -> None:
    move(simulator, image_id, deactivated=True)


def moved(simulator: Simulator, image_id: str) -> None:
    other = next(p for p in simulator.patient_ids() if p != patient_of(simulator, image_id))
    move(simulator, image_id, patient_id=other)


def gone(simulator: Simulator, image_id: str) -> None:
    simulator.remove_image(image_id)


def not_listed(simulator: Simulator, image_id: str) -> None:
    other = next(p for p in simulator.patient_ids() if p != patient_of(simulator, image_id))
    simulator.merge_patient(patient_of(simulator, image_id), other)


@pytest.mark.parametrize("becomes", [deactivated, moved, gone, not_listed])
def test_what_became_of_an_image_is_noted_once_and_nothing_that_is_there_is_touched(
    account: Account, becomes: Callable[[Simulator, str], None]
) -> None:
    simulator = account.simulator
    all_listed = listed(simulator)
    # What is of a coverage, too, is listed by that.
    image_id, version = [key for key in uploaded(simulator) if not all_listed[key]["coverage"]][3]
    owner = patient_of(simulator, image_id)
    own = simulator.expected_images(owner)
    before = contents(account.archive)
    becomes(simulator, image_id)
    result = account.night()
    missed = sum(not image["coverage"] for image in own) if becomes is not_listed else 1
    assert result.summary["unlisted"] == {becomes.__name__: missed}
    assert f"{missed} {becomes.__name__.replace('_', ' ')}; noted" in result.err
    assert before.items() <= contents(account.archive).items()

    first, state = (account.state(image_id, version, revision) for revision in (1, 2))
    assert list(state) == [*first, "unlisted"]
    assert state["unlisted"] == becomes.__name__
    assert state["deactivated"] == (becomes is deactivated)
    assert (state["file"], state["source"], state["version"], state["image_id"]) == (
        first["file"],
        first["source"],
        version,
        image_id,
    )
    record = state["record"]
    assert "signed_url" not in record
    if becomes in (gone, not_listed):
        assert record == first["record"]
    else:
        assert record["version"] == version + 1
        assert state["patient_id"] == record["patient"]["id"]
    (told,) = [
        line
        for line in journal(account.archive, result.summary["run_id"])
        if line["event"] == "unlisted" and line["image_id"] == image_id
    ]
    assert (told["became"], told["version"], told["revision"]) == (becomes.__name__, version, 2)
    assert verify(str(account.archive)).ok

    asked = simulator.requests["image"]
    again = account.night()
    assert again.summary["unlisted"] == {}
    # Only of what is as it was, more may come to light.
    assert simulator.requests["image"] - asked == (len(own) if becomes is not_listed else 0)
    assert len(revisions(account.archive)) == missed


def test_what_another_question_lists_is_not_missed(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=20)
    rows = [f"{patient}," for patient in simulator.patient_ids()]
    rows += [f",{coverage}" for coverage in simulator.coverage_ids()]
    manifest = tmp_path / "patients.csv"
    manifest.write_text("\n".join(["patient_id,coverage_id", *rows]) + "\n", encoding="utf-8")
    account = Account(simulator, manifest, tmp_path / "archive")
    account.night()
    image_id = next(image_id for (image_id, _), i in listed(simulator).items() if i["coverage"])
    not_listed(simulator, image_id)
    for _ in range(3):
        account.night("--query-concurrency=1")
    assert not list(account.archive.glob(f"[!.]*/{image_id}.*.r*.json"))
    assert verify(str(account.archive)).ok


def test_what_is_listed_again_at_the_same_version_is_as_it_was(account: Account) -> None:
    simulator = account.simulator
    image_id, version = uploaded(simulator)[0]
    simulator.remove_image(image_id)
    account.night()
    simulator._catalog.removed.clear()
    result = account.night()
    assert result.summary["images"]["downloaded"] == 0
    assert account.state(image_id, version, 2)["unlisted"] == "gone"
    assert list(account.state(image_id, version, 3)) == list(account.state(image_id, version, 1))
    simulator.remove_image(image_id)
    account.night()
    assert account.state(image_id, version, 4)["unlisted"] == "gone"
    assert verify(str(account.archive)).ok


def test_what_is_as_it_was_and_then_goes_is_noted_as_gone(account: Account) -> None:
    simulator = account.simulator
    all_listed = listed(simulator)
    image_id, version = next(key for key in uploaded(simulator) if not all_listed[key]["coverage"])
    not_listed(simulator, image_id)
    account.night()
    simulator.remove_image(image_id)
    assert account.night().summary["unlisted"] == {"gone": 1}
    assert account.state(image_id, version, 3)["unlisted"] == "gone"


def test_only_the_latest_version_is_missed(account: Account) -> None:
    simulator = account.simulator
    image_id, version = uploaded(simulator)[0]
    move(simulator, image_id, display_name="another")
    account.night()
    simulator.remove_image(image_id)
    account.night()
    (revision,) = revisions(account.archive)
    assert revision.name == f"{image_id}.v{version + 1}.r2.json"


@pytest.mark.parametrize(
    "options",
    [
        ["--side=FRONT"],
        ["--status=PENDING"],
        ["--file-type=application/pdf"],
        ["--updated-since=2031-01-01"],
        ["--side=NONE", "--force"],
    ],
)
def test_filters_never_make_an_image_look_gone(account: Account, options: list[str]) -> None:
    asked = account.simulator.requests["image"]
    assert account.night(*options).summary["unlisted"] == {}
    assert account.simulator.requests["image"] == asked
    assert not revisions(account.archive)


def test_images_of_a_coverage_are_not_missed_by_a_question_without_coverages(
    account: Account,
) -> None:
    found = account.night("--include-coverages").summary["images"]
    assert found["downloaded"] > 0
    asked = account.simulator.requests["image"]
    assert account.night().summary["unlisted"] == {}
    assert account.simulator.requests["image"] == asked
    coverage_only = next(
        image
        for patient in account.simulator.patient_ids()
        for coverage in account.simulator.coverage_ids(patient)
        for image in account.simulator.expected_images(coverage_id=coverage)
        if image["patient"] is None
    )
    account.simulator.remove_image(str(coverage_only["id"]))
    assert account.night().summary["unlisted"] == {}
    assert account.night("--include-coverages").summary["unlisted"] == {"gone": 1}


def test_an_image_of_a_coverage_alone_is_missed_by_its_coverage(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=60)
    coverages = list(simulator.coverage_ids())
    manifest = tmp_path / "coverages.csv"
    manifest.write_text("coverage_id\n" + "\n".join(coverages) + "\n", encoding="utf-8")
    account = Account(simulator, manifest, tmp_path / "archive")
    account.night()
    image = next(
        image
        for coverage in coverages
        for image in simulator.expected_images(coverage_id=coverage)
        if image["patient"] is None
    )
    deactivated(simulator, str(image["id"]))
    assert account.night().summary["unlisted"] == {"deactivated": 1}
    assert account.night().summary["unlisted"] == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_all_images_of_a_coverage_that_go_at_once_are_missed_wherever_they_are(
    serve: Serve, tmp_path: Path, processes: int
) -> None:
    simulator = serve(patients=60)
    manifest = tmp_path / "coverages.csv"
    coverages = list(simulator.coverage_ids())
    manifest.write_text("coverage_id\n" + "\n".join(coverages) + "\n", encoding="utf-8")
    account = Account(simulator, manifest, tmp_path / "archive")
    account.night()
    going = [
        str(image["id"])
        for coverage in coverages[:20]
        for image in simulator.expected_images(coverage_id=coverage)
    ]
    assert len(going) > 10
    for image_id in going:
        simulator.remove_image(image_id)
    # Somebody's journal does not lead out of the archive.
    (tmp_path / "outside").mkdir()
    stray = account.archive / ".bulkfetch" / "runs" / "20260101T000000Z-000000"
    stray.mkdir()
    lines = [
        json.dumps({"event": "image", "coverage_id": coverages[0], "directory": directory})
        for directory in ("../outside", "/etc", "", ".bulkfetch/runs", "a//b", "no-such")
    ]
    (stray / "journal.jsonl").write_text("\n".join([*lines, "rubbish"]).replace(": ", ":"))
    pipe = stray.with_name("20260101T000001Z-000000") / "journal.jsonl"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    result = account.night(f"--processes={processes}")
    assert result.summary["unlisted"] == {"gone": len(going)}
    assert account.night().summary["unlisted"] == {}


@pytest.mark.parametrize(
    "template",
    [
        "{patient_hash}/{patient_id}/{image_id}.v{version}",
        "cards/{side}/{patient_id}/{image_id}.v{version}",
        "{patient_id}/{coverage_id}/{image_id}.v{version}",
        "{organization_id}/by-{side}/{patient_id}/{image_id}.v{version}",
        "{updated_year}/{updated_month}/{file_type}/{patient_id}/{image_id}.v{version}",
        "{patient_id}/{image_id}/{image_id}.v{version}",
    ],
)
def test_missed_images_are_found_whatever_the_path_template(
    serve: Serve, tmp_path: Path, template: str
) -> None:
    simulator = serve(patients=10)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    account = Account(simulator, manifest, tmp_path / "archive")
    account.night(f"--path-template={template}")
    # Of an image whose earlier version lies elsewhere, the latest is missed.
    move(simulator, uploaded(simulator)[0][0], coverage_id=None, coverage_side=None)
    account.night(f"--path-template={template}")
    for image_id, _ in uploaded(simulator)[:3]:
        simulator.remove_image(image_id)
    result = account.night(f"--path-template={template}")
    assert result.summary["unlisted"] == {"gone": 3}
    assert verify(str(account.archive)).ok


def test_too_many_directories_above_the_patients_are_told(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=3)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    account = Account(simulator, manifest, tmp_path / "archive")
    template = "--path-template={coverage_id}/{patient_id}/{image_id}.v{version}"
    account.night(template)
    for number in range(1_001):
        (account.archive / f"c-{number}").mkdir()
    assert account.night(template).err.count("are not looked for") == 1


def test_a_failure_never_makes_an_image_look_gone(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = account.simulator
    image_id, version = uploaded(simulator)[0]
    simulator.remove_image(image_id)
    with monkeypatch.context() as context:
        # A 404 that is not the API's own word for an image that it does not know.
        context.setitem(_ERROR_NAMES, 404, "RouteNotFoundError")
        result = account.night("--retries=1", status=1)
    assert result.summary["unlisted"] == {}
    (row,) = failures(account.archive, result.summary["run_id"])
    assert (row["patient_id"], row["bulkfetch_kind"]) == (patient_of_sidecar(account), "status")
    assert not revisions(account.archive)
    with monkeypatch.context() as context:
        in_turn(context, simulator, "image", image_id, "503", "html", "reset")
        assert account.night().summary["unlisted"] == {"gone": 1}
    assert account.state(image_id, version, 2)["unlisted"] == "gone"


def patient_of_sidecar(account: Account) -> str:
    """The patient of the first image: gone, so that only the archive tells."""
    for path in account.archive.glob("[!.]*/*.json"):
        sidecar = json.loads(path.read_bytes())
        if sidecar["image_id"] in account.simulator._catalog.removed:
            return str(sidecar["patient_id"])
    raise LookupError


def test_a_dry_run_tells_and_writes_nothing(account: Account) -> None:
    account.simulator.remove_image(uploaded(account.simulator)[0][0])
    before = contents(account.archive)
    assert account.night("--dry-run").summary["unlisted"] == {"gone": 1}
    assert contents(account.archive) == before


def test_several_rows_processes_and_shards_note_an_image_once(account: Account) -> None:
    simulator = account.simulator
    image_id, version = next(
        (str(image["id"]), int(str(image["version"])))
        for patient_id in simulator.patient_ids()
        for image in simulator.expected_images(patient_id)
        if image["coverage"]
    )
    owner = patient_of(simulator, image_id)
    coverage = next(
        str(image["coverage"]["id"])
        for image in simulator.expected_images(owner)
        if image["id"] == image_id
    )
    account.manifest.write_text(
        f"patient_id,coverage_id\n{owner},\n{owner},{coverage}\n,{coverage}\n", encoding="utf-8"
    )
    simulator.remove_image(image_id)
    account.night("--processes=3")
    (revision,) = revisions(account.archive)
    assert revision.name == f"{image_id}.v{version}.r2.json"


def test_an_account_that_lists_nothing_any_more_is_told_loudly(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = len(list(account.archive.glob("[!.]*/*.json")))
    monkeypatch.setattr(account.simulator._catalog, "search", lambda *_, **__: [])
    result = account.night()
    assert result.summary["unlisted"] == {"not_listed": held}
    assert "most patients have no image" in result.err


def test_another_organizations_credentials_make_nothing_look_gone(
    account: Account, serve: Serve
) -> None:
    other = serve(patients=3, seed=99, organization_id="another")
    result = download(other, account.manifest, account.archive)
    assert result.status == 2, result.err
    assert "organization" in result.err
    nobody = serve(patients=0, organization_id="another")
    result = download(nobody, account.manifest, account.archive)
    assert result.status == 1
    kinds = {row["bulkfetch_kind"] for row in failures(account.archive, result.summary["run_id"])}
    assert kinds == {"unknown_account"}
    assert not revisions(account.archive)


def test_a_patient_whose_images_are_all_gone_is_recognised_by_another_patient(
    account: Account,
) -> None:
    simulator = account.simulator
    owner = patient_of(simulator, uploaded(simulator)[0][0])
    images = simulator.expected_images(owner)
    for image in images:
        simulator.remove_image(str(image["id"]))
    write_manifest(account.manifest, [owner])
    assert account.night().summary["unlisted"] == {"gone": len(images)}


def test_a_patient_whose_missed_image_was_not_asked_for_is_not_complete(account: Account) -> None:
    simulator = account.simulator
    image_id, _ = uploaded(simulator)[0]
    simulator.remove_image(image_id)
    simulator.faults.add("image:latency=60")
    process = start_bulkfetch(
        ["download", account.manifest, "--out", account.archive, "--progress=none", "--json"],
        credentials(simulator),
    )
    while not simulator.requests["image"]:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert json.loads(out)["patients"]["not_reached"] > 0


def test_a_sidecar_that_cannot_be_read_of_an_image_that_is_not_listed_is_told(
    account: Account,
) -> None:
    image_id, version = uploaded(account.simulator)[0]
    account.sidecar(image_id, version, 1).write_bytes(b"{}")
    account.simulator.remove_image(image_id)
    assert f"{image_id}.v{version}: its sidecar cannot be read" in account.night().err
