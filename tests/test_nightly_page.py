"""docs/nightly.md: what it says to run is run, as it stands there, against the simulator."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import textwrap
from pathlib import Path

import pytest

from bulkfetch.building import cursor, scan
from bulkfetch.building.build import LISTINGS_AT_MOST
from bulkfetch.simulator import Simulator
from tests.command import put_on_path
from tests.conftest import Serve, credentials, sidecars

PAGE = (Path(__file__).parents[1] / "docs" / "nightly.md").read_text(encoding="utf-8")
HOME = "/srv/cards"


def blocks(language: str) -> list[str]:
    """The page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What is `/srv/cards` on the page, with the command beside it."""
    put_on_path(tmp_path / "bin")
    return tmp_path


def here(text: str, home: Path) -> str:
    return text.replace(HOME, str(home))


def done(simulator: Simulator, home: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the page, and see that it went well."""
    result = subprocess.run(
        ["sh", "-euc", here(script, home)],
        capture_output=True, text=True, check=False, cwd=home, timeout=100,
        env={**os.environ, **credentials(simulator), "PATH": f"{home}/bin:{os.environ['PATH']}"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


def systemd() -> str:
    return "\n".join(re.findall(r"^ExecStart=(.*)$", blocks("ini")[0], re.MULTILINE))


def kubernetes() -> str:
    (script,) = re.findall(r"args:\n +- \|\n(.*?)\n +env:", blocks("yaml")[0], re.DOTALL)
    return textwrap.dedent(script)


@pytest.mark.parametrize("script", [blocks("sh")[0], systemd(), kubernetes()])
def test_two_nights_and_a_quiet_one(serve: Serve, home: Path, script: str) -> None:
    simulator = serve(patients=30)
    (home / "environment").touch()
    done(simulator, home, script)
    everything = sidecars(home / "archive")
    coverages = {image["id"] for c in simulator.coverage_ids()
                 for image in simulator.expected_images(coverage_id=c)}  # fmt: skip
    patients = {image["id"] for p in simulator.patient_ids()
                for image in simulator.expected_images(p)}  # fmt: skip
    assert {image for image, _ in everything} == coverages | patients
    simulator.touch_patient(next(iter(simulator.patient_ids())))
    done(simulator, home, script)
    assert len((home / "nightly.csv").read_text().splitlines()) > 1
    quiet = done(simulator, home, script)
    assert len((home / "nightly.csv").read_text().splitlines()) == 1
    assert "nobody changed" in quiet.stderr


def test_the_weekly_run(serve: Serve, home: Path) -> None:
    simulator = serve(patients=30)
    (home / "environment").touch()
    done(simulator, home, blocks("sh")[1])
    assert sidecars(home / "archive")


def test_the_line_for_cron(serve: Serve, home: Path) -> None:
    simulator = serve(patients=5)
    (home / "environment").touch()
    script = home / "nightly"
    script.write_text(here(blocks("sh")[0], home))
    script.chmod(0o755)
    (line,) = blocks("cron")
    command = line.split(None, 5)[5]
    assert "cards:" not in done(simulator, home, command).stdout
    assert sidecars(home / "archive")
    script.write_text("#!/bin/sh\nexit 4\n")
    assert f"cards: status 4, see {home}/nightly.log" in done(simulator, home, command).stdout
    busy = f"flock {shlex.quote(str(home / 'lock'))} sh -euc {shlex.quote(here(command, home))}"
    assert "cards: status 75," in done(simulator, home, busy).stdout


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    assert cursor.OVERLAP.total_seconds() == 5 * 60
    assert "last five minutes are read again" in PAGE
    assert cursor.AHEAD_AT_MOST.days == 1
    assert LISTINGS_AT_MOST == 3
    assert "up to three times" in PAGE
    assert scan.BEGINNING.startswith("1970-01-01")
