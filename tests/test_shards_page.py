"""docs/shards.md: what it says to run is run, as it stands there, as far as it can be here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from bulkfetch import status
from bulkfetch.archive.lease import LEASE_S
from bulkfetch.simulator import Simulator
from bulkfetch.stores import open_store
from tests.command import put_on_path
from tests.conftest import Result, Serve, bulkfetch, credentials, sidecars, write_manifest
from tests.faulty import intact
from tests.stores import SECRET, Bucket

PAGE = (Path(__file__).parents[1] / "docs" / "shards.md").read_text(encoding="utf-8")
SHARDS = range(1, 9)
HERE = "s3://cards"


def blocks(language: str) -> list[str]:
    """The page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


XARGS, PARALLEL = blocks("sh")
(SLURM,) = blocks("bash")
(KUBERNETES,) = map(yaml.safe_load, blocks("yaml"))
SPEC = KUBERNETES["spec"]
(CONTAINER,) = SPEC["template"]["spec"]["containers"]


@pytest.fixture
def simulator(serve: Serve) -> Simulator:
    return serve(patients=30)


@pytest.fixture
def home(simulator: Simulator, tmp_path: Path) -> Path:
    """Where the page's commands are run: the manifest, and the command on the path."""
    write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    put_on_path(tmp_path / "bin")
    return tmp_path


def done(
    simulator: Simulator, home: Path, command: list[str], more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{home}/bin:{os.environ['PATH']}"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=home, timeout=110,
        env={**os.environ, **credentials(simulator), **path, **(more or {})},
    )  # fmt: skip


def told(out: str | Path, environment: Mapping[str, str] | None = None) -> Result:
    return bulkfetch("status", out, "--json", environment=environment)


@pytest.mark.parametrize("line", [XARGS, PARALLEL])
def test_jobs_side_by_side_on_one_machine(simulator: Simulator, home: Path, line: str) -> None:
    if "parallel" in line and not shutil.which("parallel"):
        pytest.skip("GNU parallel is not installed")
    result = done(simulator, home, ["sh", "-euc", line])
    assert result.returncode == 0, result.stderr
    intact(simulator, home / "archive")
    assert sidecars(home / "archive")
    found = told(home / "archive")
    assert found.status == 0
    assert found.summary["patients"]["total"] == 30
    assert len(found.summary["runs"]) == len(SHARDS)


def test_xargs_tells_that_one_of_them_failed_and_status_which_is_missing(
    simulator: Simulator, home: Path
) -> None:
    command = home / "bin" / "bulkfetch"
    well = command.rename(home / "bin" / "well")
    script = f'#!/bin/sh\ncase "$*" in *3/8) exit 1; esac\nexec {shlex.quote(str(well))} "$@"\n'
    command.write_text(script)
    command.chmod(0o755)
    result = done(simulator, home, ["sh", "-euc", XARGS])
    assert result.returncode == 123, result.stderr
    assert "else 123" in PAGE
    found = told(home / "archive")
    assert found.status == 1
    assert found.summary["missing_shards"] == ["3/8"]
    words = bulkfetch("status", home / "archive")
    assert words.status == 1
    assert "no run of  3/8: a part of the manifest, until it is run" in words.err
    assert "no run of  3/4: a part of the manifest, until it is run" in PAGE


@pytest.fixture
def cards(bucket: Bucket, home: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The page's bucket, with its manifest."""
    bucket.export(monkeypatch)
    open_store(bucket.url).put("patients.csv", (home / "patients.csv").read_bytes())
    return bucket


def all_at_once(
    simulator: Simulator,
    home: Path,
    cards: Bucket,
    command: list[str],
    variables: list[dict[str, str]],
) -> None:
    """Run a command of the page once with each of some variables, and see that all went well."""
    here = [word.replace(HERE, cards.url) for word in command]
    with ThreadPoolExecutor(len(variables)) as pool:
        results = list(pool.map(lambda more: done(simulator, home, here, more), variables))
    for result in results:
        assert result.returncode == 0, result.stderr
        assert SECRET not in result.stderr
    found = told(f"{cards.url}/export")
    assert found.status == 0, found.out
    assert found.summary["shards"] == len(SHARDS)
    assert found.summary["patients"]["total"] == len(list(simulator.patient_ids()))
    archived = {
        json.loads(data)["image_id"]
        for path, data in cards.contents().items()
        if path.endswith(".json") and "/.bulkfetch/" not in path
    }
    expected = {
        image["id"] for p in simulator.patient_ids() for image in simulator.expected_images(p)
    }
    assert archived == expected


def test_every_task_of_the_slurm_array(simulator: Simulator, home: Path, cards: Bucket) -> None:
    # One that is run again alone is told that there is but one.
    tasks = [{"SLURM_ARRAY_TASK_ID": str(n), "SLURM_ARRAY_TASK_COUNT": "1"} for n in SHARDS]
    all_at_once(simulator, home, cards, ["bash", "-c", SLURM], tasks)
    assert f"#SBATCH --array=1-{len(SHARDS)}\n" in SLURM


def test_every_index_of_the_kubernetes_job(simulator: Simulator, home: Path, cards: Bucket) -> None:
    indexes = [{"JOB_COMPLETION_INDEX": str(n)} for n in range(SPEC["completions"])]
    command = [*CONTAINER["command"], *CONTAINER["args"]]
    all_at_once(simulator, home, cards, command, indexes)


def test_the_kubernetes_job_is_one_that_retries_each_index_by_itself() -> None:
    assert (KUBERNETES["apiVersion"], KUBERNETES["kind"]) == ("batch/v1", "Job")
    assert SPEC["completionMode"] == "Indexed"
    assert SPEC["completions"] == SPEC["parallelism"] == len(SHARDS)
    assert "+ 1))/8" in CONTAINER["args"][0]
    # What `backoffLimitPerIndex` and `podFailurePolicy` are allowed with.
    pod: dict[str, Any] = SPEC["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    wrong = next(rule for rule in SPEC["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert wrong["onExitCodes"] == {
        "containerName": CONTAINER["name"], "operator": "In", "values": [2, 3],
    }  # fmt: skip
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    (mount,) = CONTAINER["volumeMounts"]
    environment = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert Path(environment["BULKFETCH_CLIENT_SECRET_FILE"]).parent == Path(mount["mountPath"])


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    assert f"takes over after {LEASE_S:.0f} s" in PAGE
    assert status._MOST_RUNS == 1000
    assert "the last thousand runs" in PAGE
