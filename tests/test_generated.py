"""What is made from the code and kept beside it: the manual page, and the schemas."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bulkfetch.cli.whole import whole_command_line
from tests.conftest import Serve, bulkfetch, download, sidecars, write_manifest
from tests.faulty import uploaded
from tests.test_unlisted import deactivated

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "bulkfetch.1"


def test_it_is_what_the_code_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generated.py"))["generated"]()
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale: make generated"


def options_of(parser: Any) -> set[str]:
    """Every option that a parser or any command below it shows."""
    shown = [action for action in parser._actions if action.help != "==SUPPRESS=="]
    options = {option for action in shown for option in action.option_strings}
    below = [a.choices.values() for a in shown if isinstance(a.choices, dict)]
    return options.union(*(options_of(command) for commands in below for command in commands))


def test_no_option_and_no_command_is_missing_from_the_manual_page() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\-", "-")
    options = options_of(whole_command_line())
    assert len(options) > 60
    shown = set(re.findall(r"--?[a-z][a-z-]*", text))
    assert not options - shown - {"-h", "--help"}


@pytest.mark.parametrize("judge", ["groff -ww -man -z", "mandoc -Tlint -Wwarning"])
def test_the_manual_page_is_set_without_a_warning(judge: str) -> None:
    program, *options = judge.split()
    if shutil.which(program) is None:
        pytest.skip(f"this machine has no {program}")
    done = subprocess.run([program, *options, PAGE], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_sidecars_of_every_kind_and_summaries_are_as_the_schemas_say(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=8)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    assert download(simulator, manifest, archive).status == 0
    deactivated(simulator, uploaded(simulator)[0][0])
    assert download(simulator, manifest, archive).status == 0
    paths = list(archive.glob("[!.]*/*.json"))
    found = [json.loads(path.read_bytes()) for path in paths]
    assert {sidecar["outcome"] for sidecar in found} == {"downloaded", "not_uploaded"}
    assert sum("unlisted" in sidecar for sidecar in found) == 1
    judges = {}
    for name in ("sidecar", "summary"):
        schema = json.loads(bulkfetch("schema", name).out)
        jsonschema.Draft202012Validator.check_schema(schema)
        judges[name] = jsonschema.Draft202012Validator(schema)
    for sidecar in found:
        judges["sidecar"].validate(sidecar)
    for path in archive.glob(".bulkfetch/runs/*/summary.json"):
        judges["summary"].validate(json.loads(path.read_bytes()))
    whole = next(sidecar for sidecar in found if sidecar["file"])
    for broken in (
        {**whole, "version": "1"},
        {**whole, "schema_version": 2},
        {**whole, "signed_url": "https://storage.example.org/x"},
        {**whole, "file": {**whole["file"], "size": None}},
        {key: value for key, value in whole.items() if key != "run_id"},
    ):
        assert not judges["sidecar"].is_valid(broken)
    assert sidecars(archive)
