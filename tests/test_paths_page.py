"""docs/paths.md: its fields are those there are, and what it says to run is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bulkfetch.archive.look import _BRANCHES_AT_MOST
from bulkfetch.paths import TEMPLATE_FIELDS
from bulkfetch.simulator import Simulator
from tests.conftest import Serve, download, sidecars, write_manifest
from tests.faulty import uploaded

PAGE = (Path(__file__).parents[1] / "docs" / "paths.md").read_text(encoding="utf-8")
HOSTILE = ["../../../up", "/etc/passwd", "a\nb", "\u202egpj.exe", "é" * 300, "", "..", "a/b\\c"]


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.fixture
def archived(serve: Serve, tmp_path: Path) -> tuple[Simulator, Path]:
    """An archive of images whose names are no harmless ones."""
    simulator = serve()
    for (image_id, _), name in zip(uploaded(simulator), HOSTILE, strict=False):
        simulator.patch_image(image_id, file_name=name)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    assert download(simulator, manifest, tmp_path / "archive").status == 0
    return simulator, tmp_path / "archive"


def browse(archive: Path, tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", block("python"), archive, tree],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def test_the_page_has_every_field_there_is() -> None:
    table = PAGE.partition("## The fields")[2].partition("These are")[0]
    assert set(re.findall(r"`\{(\w+)\}`", table)) == set(TEMPLATE_FIELDS)
    assert f"up to {_BRANCHES_AT_MOST:,} of each" in PAGE


def test_a_path_leads_to_its_image(archived: tuple[Simulator, Path]) -> None:
    _, archive = archived
    (image_id, version), sidecar = next(
        (key, sidecar) for key, sidecar in sidecars(archive).items() if sidecar["file"]
    )
    path = sidecar["_path"].with_name(sidecar["file"]["path"])
    for line in block("sh").splitlines():
        shown = subprocess.run(
            ["sh", "-euc", line.replace("python3", sys.executable)],
            capture_output=True, text=True, check=False,
            env={"path": str(path), "PATH": "/usr/bin"},
        )  # fmt: skip
        if shown.returncode == 127:
            continue  # jq is not everywhere
        assert shown.stdout.split() == [image_id, str(version), sidecar["patient_id"]], shown.stderr


def test_the_tree_to_browse_has_every_image_under_one_harmless_name_outside_of_the_archive(
    archived: tuple[Simulator, Path], tmp_path: Path
) -> None:
    simulator, archive = archived
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = browse(archive, tmp_path / "browse")
    assert done.returncode == 0, done.stderr
    links = [path for path in (tmp_path / "browse").rglob("*") if path.is_symlink()]
    states = sidecars(archive).values()
    images = {s["_path"].with_name(s["file"]["path"]) for s in states if s["file"]}
    assert len(links) == len(images) == len(uploaded(simulator))
    assert {link.resolve() for link in links} == images
    assert all(link.name.isprintable() and not link.name.startswith(".") for link in links)
    assert (tmp_path / "browse").stat().st_mode & 0o777 == 0o700
    new = {path for path in tmp_path.rglob("*") if tmp_path / "browse" not in (path, *path.parents)}
    assert {path: path.lstat().st_mtime_ns for path in new} == before
    inside = browse(archive, archive / "browse")
    assert inside.returncode == 1
    assert not (archive / "browse").exists()
