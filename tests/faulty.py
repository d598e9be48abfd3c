"""What the tests of faults share: requests that go wrong as planned, and what must hold after."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bulkfetch.archive.tree import LocalTree
from bulkfetch.simulator import Fault, RequestRecord, Simulator, parse_fault
from tests.conftest import Result, sidecars

Key = tuple[str, int]
Step = str | Callable[[], str]
"""A fault without its target, such as `short`, or what makes one; an empty one is a good answer."""


def listed(simulator: Simulator) -> dict[Key, dict[str, Any]]:
    """Every image that a search by patient finds, by ID and version."""
    return {
        (str(image["id"]), int(str(image["version"]))): dict(image)
        for patient_id in simulator.patient_ids()
        for image in simulator.expected_images(patient_id)
    }


def uploaded(simulator: Simulator) -> list[Key]:
    """The images that have bytes, in the patients' order."""
    return [key for key, image in listed(simulator).items() if image["status"] == "UPLOADED"]


def patient_of(simulator: Simulator, image_id: str) -> str:
    """The patient in whose search an image is."""
    for patient_id in simulator.patient_ids():
        if any(image["id"] == image_id for image in simulator.expected_images(patient_id)):
            return patient_id
    raise LookupError(image_id)


def only_for(monkeypatch: pytest.MonkeyPatch, simulator: Simulator, part: str) -> None:
    """Let faults strike no request but those whose path or query holds `part`."""
    strike = simulator.faults.strike

    def chosen(target: str, resource: str) -> list[Fault]:
        return strike(target, resource) if part in resource else []

    monkeypatch.setattr(simulator.faults, "strike", chosen)


def all_but_the_first(monkeypatch: pytest.MonkeyPatch, simulator: Simulator) -> None:
    """Let no fault strike what is asked about the first patient."""
    first = next(simulator.patient_ids())
    strike = simulator.faults.strike
    monkeypatch.setattr(simulator.faults, "strike", lambda t, r: [] if first in r else strike(t, r))


def in_turn(
    monkeypatch: pytest.MonkeyPatch, simulator: Simulator, target: str, part: str, *steps: Step
) -> None:
    """Let one fault after the other strike the requests for `part`; after the last all is well."""
    left = list(steps)

    def strike(struck: str, resource: str) -> list[Fault]:
        if struck != target or part not in resource or not left:
            return []
        step = left.pop(0)
        kind = step if isinstance(step, str) else step()
        return [parse_fault(f"{target}:{kind}")] if kind else []

    monkeypatch.setattr(simulator.faults, "strike", strike)


def move(simulator: Simulator, image_id: str, **changes: Any) -> None:
    """Make a new version of an image."""
    catalog = simulator._catalog
    image = catalog.image(image_id)
    assert image is not None
    catalog.update(replace(image, **changes), image.version)


def asked(simulator: Simulator, endpoint: str, part: str) -> list[RequestRecord]:
    """The requests to an endpoint about something, in order."""
    return [
        record
        for record in simulator.log
        if record.endpoint == endpoint and (part in record.path or part == record.patient_id)
    ]


def balance(summary: dict[str, Any]) -> None:
    """Check that the sums are sums."""
    patients, images = dict(summary["patients"]), dict(summary["images"])
    assert patients.pop("total") == sum(patients.values())
    assert images.pop("listed") == sum(images.values())


def intact(
    simulator: Simulator, archive: Path, *, missing: Iterable[Key] = (), complete: bool = True
) -> None:
    """Check every sidecar against its file and the simulator; nothing half-made lies about.

    With `complete`, all that is listed is there, but for what is `missing`.
    """
    found = sidecars(archive)
    whole(archive)
    for key, sidecar in found.items():
        if sidecar["file"]:
            data = (sidecar["_path"].parent / sidecar["file"]["path"]).read_bytes()
            assert data == simulator.stored_bytes(*key), key
    assert not found.keys() & set(missing)
    if complete:
        assert found.keys() == listed(simulator).keys() - set(missing)
    files = {
        sidecar["_path"].parent / sidecar["file"]["path"]
        for sidecar in found.values()
        if sidecar["file"]
    }
    assert files == {path for path in archive.glob("[!.]*/*") if path.suffix != ".json"}
    assert not list(archive.rglob("*.part"))
    assert not list(archive.glob(".bulkfetch/parts/*"))


def whole(archive: Path) -> int:
    """Check that no sidecar is without its whole file, and return how many there are."""
    found = sidecars(archive)
    for key, sidecar in found.items():
        if sidecar["file"]:
            data = (sidecar["_path"].parent / sidecar["file"]["path"]).read_bytes()
            assert len(data) == sidecar["file"]["size"], key
            assert hashlib.sha256(data).hexdigest() == sidecar["file"]["sha256"], key
    return len(found)


def failures(archive: Path, run_id: str) -> list[dict[str, str]]:
    """The rows of a run's failures file."""
    path = archive / ".bulkfetch" / "runs" / run_id / "failures.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def journal(archive: Path, run_id: str) -> list[dict[str, Any]]:
    """The lines of a run's journal."""
    with LocalTree(archive).open(f".bulkfetch/runs/{run_id}/journal.jsonl") as file:
        return [json.loads(line) for line in file]


def named(result: Result, archive: Path, patient_id: str, kind: str, image: str = "") -> None:
    """Check that a run ended with one failure, and that it is told wherever it should be."""
    assert result.status == 1, result.err
    assert "Traceback" not in result.err
    summary = result.summary
    balance(summary)
    assert summary["exit_code"] == 1
    assert summary["patients"]["failed"] == 1
    assert summary["images"]["failed"] == (1 if image else 0)
    assert not summary["patients"]["not_reached"]
    assert not summary["images"]["not_reached"]
    (row,) = failures(archive, summary["run_id"])
    assert (row["patient_id"], row["bulkfetch_kind"]) == (patient_id, kind), row
    assert row["bulkfetch_images"] == image
    assert row["bulkfetch_error"]
    told = journal(archive, summary["run_id"])
    (line,) = [o for o in told if o["event"] == "patient" and o["state"] == "failed"]
    assert (line["patient_id"], line["kind"]) == (patient_id, kind)
