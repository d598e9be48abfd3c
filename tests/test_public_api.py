"""What `import bulkfetch` promises: names, types, docstrings, and an example that runs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import bulkfetch
from tests.conftest import Serve, credentials, download, write_manifest

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there_is_listed_once_and_says_what_it_is() -> None:
    assert sorted(set(bulkfetch.__all__)) == bulkfetch.__all__
    for name in bulkfetch.__all__:
        thing = getattr(bulkfetch, name)
        assert name == "__version__" or inspect.getdoc(thing), name
    assert (Path(bulkfetch.__file__).parent / "py.typed").is_file()


def test_what_may_be_raised_is_said_where_it_is_called() -> None:
    for thing in (bulkfetch.run, bulkfetch.verify, bulkfetch.Archive, bulkfetch.Archive.read):
        doc = inspect.getdoc(thing)
        assert doc
        _, raises, said = doc.partition("Raises:\n")
        assert raises
        for line in said.splitlines():
            if line.startswith("    ") and not line.startswith("     "):
                names = line.partition(":")[0].split(",")
                known = {*bulkfetch.__all__, "ValueError"}
                assert {name.strip() for name in names} <= known, thing


def test_importing_it_brings_nothing_that_takes_long() -> None:
    loaded = "import bulkfetch, sys; print('pydantic' in sys.modules or 'aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True)
    assert done.stdout == b"False\n"


def test_the_example_makes_a_table_of_an_archive(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    summary = download(simulator, manifest, tmp_path / "archive").summary
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "docs/examples/table.py", tmp_path / "archive"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    patients = summary["patients"]["complete"]
    assert f"{summary['images']['listed']} images of {patients} patients" in done.stdout
    (told,) = re.findall(r"^all .* (\d+)$", done.stdout, re.MULTILINE)
    assert int(told) == summary["images"]["listed"]
    of_patient: dict[str, set[str]] = {}
    for patient in simulator.patient_ids():
        for image in simulator.expected_images(patient):
            if image["status"] == "UPLOADED":
                side = (image["coverage"] or {}).get("side")
                of_patient.setdefault(patient, set()).update([side] if side else [])
    sides = Counter(map(len, of_patient.values()))
    assert sides[0] > 0
    assert sides[1] > 0
    assert f"\n{sides[1]} patients with one side alone\n" in done.stdout
    assert f"\n{sides[0]} patients of whom no side is told\n" in done.stdout


def test_what_the_page_shows_runs(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulator = serve()
    for name, value in credentials(simulator).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), {})
    listed = sum(len(simulator.expected_images(p)) for p in simulator.patient_ids())
    first, second, *runs = capsys.readouterr().out.splitlines()
    assert first.endswith(" images, 0 patients failed")
    assert second == f"{listed} images listed"
    assert [run.split()[1] for run in runs] == ["0", "0"]
