"""Thirty nights of an account that changes, and an archive that follows it exactly."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bulkfetch import verify
from bulkfetch.manifest import Manifest
from bulkfetch.simulator import Simulator
from bulkfetch.simulator.population import ImageRecord
from tests.conftest import Serve, credentials, download, sidecars, start_bulkfetch, write_manifest
from tests.faulty import Key, balance, listed
from tests.test_bag import bag, validate

NIGHTS = 30
PATIENTS = 24
CHANGES_A_NIGHT = 5
FAULTS = (
    "images:503@10%", "images:drop@5%", "images:html@5%", "images:truncated-json@5%",
    "image:503@20%", "image:drop@10%", "storage:503@10%",
    "storage:short@5%", "storage:corrupt@5%", "storage:drop@10%", "storage:xml@5%",
)  # fmt: skip


@dataclass
class Account:
    """An account, and its history as the account itself knows it: who was listed with what."""

    simulator: Simulator
    chance: random.Random
    patients: list[str]
    files: dict[Key, str] = field(default_factory=dict)
    known: dict[Key, dict[str, Any]] = field(default_factory=dict)
    unlisted: dict[Key, str] = field(default_factory=dict)
    merged: dict[str, str] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)

    def change(self) -> None:
        """Do what a day does to an account."""
        day: list[Callable[[], None]] = [
            self.upload, self.create_pending, self.update, self.finish_pending, self.restate,
            self.deactivate, self.reactivate, self.move, self.merge, self.remove,
        ]  # fmt: skip
        for _ in range(CHANGES_A_NIGHT):
            self.chance.choice(day)()

    def note(self) -> None:
        """Note what is listed now, and what no longer: what a run of tonight is to have."""
        now = listed(self.simulator)
        for key, image in now.items():
            self.known[key] = image
            self.unlisted.pop(key, None)
            if image["status"] == "UPLOADED":
                data = self.simulator.stored_bytes(*key)
                self.files[key] = hashlib.sha256(data).hexdigest()
        shown = {(image_id, image["patient"]["id"]) for (image_id, _), image in now.items()}
        for key in self.latest():
            if (key[0], self.known[key]["patient"]["id"]) in shown:
                continue
            # Only of what was as before, more is asked.
            if self.unlisted.get(key, "not_listed") == "not_listed" and (why := self.became(key)):
                self.unlisted[key] = why

    def latest(self) -> list[Key]:
        """The last version of each image that each of its patients ever had."""
        found: dict[tuple[str, str], int] = {}
        for (image_id, version), image in self.known.items():
            place = image_id, image["patient"]["id"]
            found[place] = max(version, found.get(place, 0))
        return [(image_id, version) for (image_id, _), version in found.items()]

    def became(self, key: Key) -> str:
        """Why an image is no longer listed where it was."""
        now, then = self.state_of(key[0]), self.known[key]
        if now is None:
            return "gone"
        if now.deactivated:
            return "deactivated"
        if now.patient_id != then["patient"]["id"]:
            return "moved"
        coverage = then["coverage"]
        by_coverage = self.simulator.expected_images(coverage_id=coverage["id"]) if coverage else []
        return "" if any(image["id"] == key[0] for image in by_coverage) else "not_listed"

    def state_of(self, image_id: str) -> ImageRecord | None:
        return self.simulator._catalog.image(image_id)

    def upload(self) -> None:
        image = self._create("UPLOADED")
        data = b"\xff\xd8\xff\xe0" + self.chance.randbytes(self.chance.randrange(100, 5_000))
        self.simulator._objects.put(image.id, image.version, data, "image/jpeg")
        self.done["upload"] += 1

    def create_pending(self) -> None:
        self._create("PENDING")
        self.done["create_pending"] += 1

    def finish_pending(self) -> None:
        for image in self._some("PENDING"):
            stored = self._update(image, status="UPLOADED")
            data = b"%PDF-1.4 " + image.id.encode()
            self.simulator._objects.put(image.id, stored.version, data, "application/pdf")
            self.done["finish_pending"] += 1

    def update(self) -> None:
        for image in self._some("UPLOADED"):
            self._update(image, display_name=f"name {self.chance.random()}")
            self.done["update"] += 1

    def restate(self) -> None:
        """Change a status without a version."""
        for image in self._some("UPLOADED"):
            is_patched = image.id in self.simulator._catalog.patches
            self.simulator.patch_image(image.id, **({} if is_patched else {"status": "FAILED"}))
            self.done["restate"] += 1

    def deactivate(self) -> None:
        for image in self._some(None):
            self._update(image, deactivated=True)
            self.done["deactivate"] += 1

    def reactivate(self) -> None:
        ids = sorted({image_id for image_id, _ in self.known})
        self.chance.shuffle(ids)
        for image_id in ids:
            image = self.state_of(image_id)
            if image is not None and image.deactivated:
                self._update(image, deactivated=False)
                self.done["reactivate"] += 1
                return

    def move(self) -> None:
        for image in self._some(None):
            self._update(image, patient_id=self.chance.choice(self.patients))
            self.done["move"] += 1

    def merge(self) -> None:
        """A merged patient's search answers with another's images."""
        if len(self.merged) < 4:
            old, into = self.chance.sample(self.patients, 2)
            if not {old, into} & {*self.merged, *self.merged.values()}:
                self.merged[old] = into
                self.simulator.merge_patient(old, into)
                self.done["merge"] += 1

    def remove(self) -> None:
        for image in self._some(None):
            self.simulator.remove_image(image.id)
            self.done["remove"] += 1

    def _create(self, status: str) -> ImageRecord:
        return self.simulator._catalog.create(
            ImageRecord(
                id="", version=0, updated_ms=0, deactivated=False, updating_user_id="u",
                display_name="new", file_name="new.jpg", file_type="image/jpeg", status=status,
                patient_id=self.chance.choice(self.patients),
            )
        )  # fmt: skip

    def _some(self, status: str | None) -> list[ImageRecord]:
        """An image that is listed, of a status if one is wanted."""
        ids = sorted(
            image_id
            for (image_id, _), image in listed(self.simulator).items()
            if status in (None, image["status"]) or image_id in self.simulator._catalog.patches
        )
        found = self.state_of(self.chance.choice(ids)) if ids else None
        return [found] if found and status in (None, found.status) else []

    def _update(self, image: ImageRecord, **changes: Any) -> ImageRecord:
        return self.simulator._catalog.update(replace(image, **changes), image.version)


def reconcile(account: Account, archive: Path) -> None:
    """Check that the archive is the account's history, no less and no more."""
    found = sidecars(archive)
    assert found.keys() == account.known.keys()
    for key, state in found.items():
        known = account.known[key]
        directory = state["_path"].parent
        assert directory.name == known["patient"]["id"]
        # Every file that ever was listed is there, byte for byte.
        if key in account.files:
            data = (directory / state["file"]["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == account.files[key]
        else:
            assert state["file"] is None
    told = {key: state["unlisted"] for key, state in found.items() if "unlisted" in state}
    assert {key: told.get(key) for key in account.latest()} == {
        key: account.unlisted.get(key) for key in account.latest()
    }
    for key, image in listed(account.simulator).items():
        assert found[key]["record"] == image
        assert found[key]["status"] == image["status"]
    files = {s["_path"].parent / s["file"]["path"] for s in found.values() if s["file"]}
    assert files == {path for path in archive.glob("[!.]*/*") if path.suffix != ".json"}


@pytest.mark.timeout(900)
def test_an_archive_follows_an_account_through_thirty_nights(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=PATIENTS, images_per_patient=2)
    account = Account(simulator, random.Random(5), list(simulator.patient_ids()))
    manifest = write_manifest(tmp_path / "patients.csv", account.patients)
    archive = tmp_path / "archive"
    heads = []
    for night in range(NIGHTS):
        simulator.faults.clear()
        account.change()
        account.note()
        simulator.faults.add(*account.chance.sample(FAULTS, 4))
        if night % 5 == 3:
            interrupt(account, manifest, archive)
        processes = f"--processes={1 + night % 2}"
        for _ in range(20):
            result = download(simulator, manifest, archive, processes, "--retries=3")
            # A night with bad luck ends with its failures named, and is run again.
            assert result.status in (0, 1), result.err
            # It has no sums where not even the first question was answered.
            balance(json.loads(result.out or '{"patients": {"total": 0}, "images": {"listed": 0}}'))
            if result.status == 0:
                break
        assert result.status == 0, result.err
        heads.append(result.summary["head"])
        reconcile(account, archive)
        with Manifest(manifest) as opened:
            report = verify(str(archive), manifest=opened, heads=heads)
        assert report.ok, report.findings
        assert report.manifest is not None
        assert report.manifest.total == report.manifest.complete + report.manifest.empty
    assert bag(archive, "--to=bag", tmp_path).status == 0
    validate(tmp_path / "bag")
    assert min(account.done.values()) > 0
    assert len(account.done) == 10
    became_of = Counter(s["unlisted"] for s in sidecars(archive).values() if "unlisted" in s)
    assert set(became_of) == {"deactivated", "moved", "gone", "not_listed"}


def interrupt(account: Account, manifest: Path, archive: Path) -> None:
    """Begin a night, and end it by a signal or by a kill."""
    process = start_bulkfetch(
        ["download", manifest, "--out", archive, "--progress=none"], credentials(account.simulator)
    )
    time.sleep(account.chance.random())
    process.send_signal(account.chance.choice([signal.SIGKILL, signal.SIGTERM]))
    process.communicate(timeout=120)
