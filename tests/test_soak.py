"""A long night: five thousand patients, three requests in ten at fault, and ten power cuts.

Deselected by default: `make soak` runs it, in some minutes.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from bulkfetch.simulator import Fault, parse_fault
from tests.conftest import (
    Serve,
    bulkfetch,
    credentials,
    sidecars,
    start_bulkfetch,
    write_manifest,
)
from tests.faulty import balance, failures, listed, whole

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

SEED = 20_260_101
PATIENTS = 5_000
KILLS = 10
SHARE = 0.3
FAULTS = {
    "token": ("503", "429=0", "drop", "short", "html", "bad-json", "empty"),
    "images": (
        "500", "502", "503", "429=0", "429", "408", "drop", "drop=10", "short", "stall=30",
        "wrong-length", "empty", "html", "xml", "bad-json", "truncated-json", "wrong-shape",
        "chunked", "latency=0.5", "token-death",
    ),
    "image": ("500", "503", "drop", "short", "html", "404"),
    "storage": (
        "500", "502", "503", "429=0", "429", "408", "drop", "drop=1000", "short", "stall=30",
        "drip=100", "corrupt", "wrong-length", "empty", "html", "xml", "expired", "403", "404",
        "gzip", "chunked", "no-hash", "no-md5", "range-ignored", "range-wrong", "etag-changes",
        "redirect=https://stranger.invalid/", "latency=0.5",
    ),
}  # fmt: skip
# A token that dies before any was accepted says that the account is closed, which ends a run.
CALM_AT_FIRST = 200
OPTIONS = (
    "--retries=8", "--timeout=2", "--progress=none", "--json", "--log-level=error",
    "--query-concurrency=16", "--download-concurrency=64",
)  # fmt: skip


def test_ten_killed_runs_and_one_more_leave_every_image_whole_or_named(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=PATIENTS, images_per_patient=1, record_requests=False)
    chance = random.Random(SEED)
    moment = random.Random(SEED)
    struck: Counter[str] = Counter()
    since_start: Counter[str] = Counter()

    def strike(target: str, _: str) -> list[Fault]:
        since_start[target] += 1
        if chance.random() >= SHARE:
            return []
        kind = chance.choice(FAULTS[target])
        if kind == "token-death" and since_start["images"] < CALM_AT_FIRST:
            return []
        struck[f"{target}:{kind}"] += 1
        return [parse_fault(f"{target}:{kind}")]

    monkeypatch.setattr(simulator.faults, "strike", strike)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    arguments: list[str | Path] = ["download", manifest, "--out", archive, *OPTIONS]
    done = 0
    for turn in range(KILLS):
        since_start.clear()
        process = start_bulkfetch(arguments, credentials(simulator))
        # By requests and not by time, so that a fast machine is not done before the last kill.
        enough = moment.randint(0, 700)
        while since_start["storage"] < enough:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(moment.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, (turn, process.returncode, err.decode())
        assert b"Traceback" not in err
        now = whole(archive) if archive.exists() else 0
        assert now >= done
        done = now
    assert 0 < done < len(listed(simulator))

    since_start.clear()
    with start_bulkfetch(arguments, credentials(simulator)) as last:
        try:
            out, err = last.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            last.kill()
            raise
    assert last.returncode in (0, 1), err.decode()
    assert b"Traceback" not in err
    summary = json.loads(out)
    balance(summary)
    assert summary["patients"]["total"] == PATIENTS
    assert not summary["patients"]["not_reached"]
    assert not summary["images"]["not_reached"]

    whole(archive)
    found, truth = sidecars(archive), listed(simulator)
    for key, sidecar in found.items():
        if sidecar["file"]:
            data = (sidecar["_path"].parent / sidecar["file"]["path"]).read_bytes()
            assert data == simulator.stored_bytes(*key), key
    rows = failures(archive, summary["run_id"])
    images = {image for row in rows for image in row["bulkfetch_images"].split()}
    queries = {row["patient_id"] for row in rows if not row["bulkfetch_images"]}
    owners = {
        (str(image["id"]), int(str(image["version"]))): patient_id
        for patient_id in simulator.patient_ids()
        for image in simulator.expected_images(patient_id)
    }
    missing = truth.keys() - found.keys()
    assert found.keys() <= truth.keys()
    assert {key for key in missing if key[0] not in images and owners[key] not in queries} == set()
    assert not images & {key[0] for key in found}
    # More than a twentieth of it missing would say that something is wrong all the same.
    assert len(missing) < len(truth) / 20 + 50
    assert len(struck) > 50
    assert not list(archive.rglob("*.part"))
    assert not list(archive.glob(".bulkfetch/parts/*"))

    monkeypatch.undo()
    calm = bulkfetch(*arguments, environment=credentials(simulator))
    assert calm.status == 0, calm.err
    assert sidecars(archive).keys() == truth.keys()
    whole(archive)
