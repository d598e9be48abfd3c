"""`bulkfetch verify`: every kind of damage, planted one at a time in a sound archive, is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bulkfetch import ConfigurationError, Finding, verify
from bulkfetch.simulator import SimulatorConfig, parse_fault
from bulkfetch.verification import ADVICE, Kind
from bulkfetch.verification.findings import Sample
from bulkfetch.verification.leaf import is_in
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    serving,
    start_bulkfetch,
    with_mounts_of_its_own,
    write_manifest,
)
from tests.damage import (
    DAMAGE,
    an_image,
    cut_the_sidecar,
    drop_a_patients_line,
    first_journal,
    flip_a_bit,
    last_journal,
    lose_both,
    lose_the_image,
)

PATIENTS = 12


class Made(NamedTuple):
    archive: Path
    manifest: Path


def make_archive(root: Path) -> Made:
    """An archive of two runs, with an image that changed its status between them."""
    with serving(SimulatorConfig(patients=PATIENTS)) as simulator:
        patients = list(simulator.patient_ids())
        made = Made(root / "archive", write_manifest(root / "patients.csv", patients))
        assert download(simulator, made.manifest, made.archive).status == 0
        uploaded = next(
            image
            for patient in patients
            for image in simulator.expected_images(patient)
            if image["status"] == "UPLOADED"
        )
        simulator.patch_image(str(uploaded["id"]), status="FAILED")
        assert download(simulator, made.manifest, made.archive).status == 0
    assert list(made.archive.glob("*/*.r2.json"))
    return made


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_archive(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def made(sound: Made, tmp_path: Path) -> Made:
    """A copy of it, to be damaged."""
    shutil.copytree(sound.archive, tmp_path / "archive", symlinks=True)
    return Made(tmp_path / "archive", sound.manifest)


def findings(archive: Path, **options: Any) -> list[Finding]:
    found: list[Finding] = []
    report = verify(str(archive), found=found.append, **options)
    assert report.ok == (not found)
    assert sum(report.findings.values()) == len(found)
    return found


def state(archive: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in archive.rglob("*")}


def test_a_sound_archive_has_no_finding_and_is_left_as_it_is(made: Made) -> None:
    before = state(made.archive)
    form = ("--manifest-format", "csv")
    result = bulkfetch("verify", made.archive, "--manifest", made.manifest, *form, "--json")
    assert result.status == 0, result.err
    *empty, last = map(json.loads, result.out.splitlines())
    report = last["report"]
    assert report["ok"]
    assert report["findings"] == {}
    assert (report["runs"], report["runs_without_summary"]) == (2, 0)
    images = [p for p in made.archive.glob("[!.]*/*") if p.suffix != ".json"]
    assert report["files"] == report["hashed"] == len(images)
    assert report["bytes"] == sum(path.stat().st_size for path in images)
    assert report["sidecars"] == len(list(made.archive.glob("[!.]*/*.json")))
    rows = report["manifest"]
    assert rows.pop("total") == sum(rows.values()) == PATIENTS
    assert rows["complete"] + rows["empty"] == PATIENTS
    assert len(empty) == rows["empty"] > 0
    for line in empty:
        assert datetime.fromisoformat(line["empty"]["at"]).tzinfo is not None
        assert line["empty"]["at"].endswith("Z")
        assert line["empty"]["patient_id"] in made.manifest.read_text("utf-8")
        assert line["empty"]["coverage_id"] is None
        assert line["empty"]["run_id"] == last_journal(made.archive).parent.name
    assert state(made.archive) == before
    assert "nothing is missing, changed or stray" in result.err


@pytest.mark.parametrize(
    ("damage", "kind"), DAMAGE, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_kind_of_damage_is_named_once(
    made: Made, damage: Callable[[Path], Path], kind: Kind
) -> None:
    named = damage(made.archive).relative_to(made.archive).as_posix()
    before = state(made.archive)
    (found,) = findings(made.archive)
    assert found.kind is kind
    assert found.path is not None
    assert found.path.startswith(named)
    assert state(made.archive) == before


def test_a_patient_under_another_name_is_one_finding_for_each_image(made: Made) -> None:
    directory = next(made.archive.glob("*/*.r2.json")).parent
    moved = directory.rename(directory.with_name("somebody-else"))
    found = findings(made.archive)
    assert {finding.kind for finding in found} == {Kind.misplaced}
    images = {path.name for path in moved.glob("*.json")} - {p.name for p in moved.glob("*.r2.*")}
    assert sorted(finding.path or "" for finding in found) == sorted(
        f"somebody-else/{name}" for name in images
    )
    # A copy of it does no harm to the original.
    shutil.copytree(moved, directory)
    assert findings(made.archive) == found
    rows = verify_rows(made)
    assert rows["damaged"] == 0


def test_a_patient_within_another_is_not_found_and_so_its_images_are_lost(made: Made) -> None:
    directory = an_image(made.archive).parent
    other = next(path for path in made.archive.glob("[!.]*") if path != directory)
    images = len(list(directory.glob("*.json")))
    directory.rename(other / "inside")
    # The directory is no image, and nothing tells that the images in it are those.
    kinds = sorted(finding.kind for finding in findings(made.archive))
    assert kinds == [*["lost"] * images, "stray"]
    assert verify_rows(made)["damaged"] == 1


def verify_rows(made: Made) -> dict[str, int]:
    """What became of the manifest's rows."""
    result = bulkfetch("verify", made.archive, "--manifest", made.manifest, "--json")
    rows: dict[str, int] = json.loads(result.out.splitlines()[-1])["report"]["manifest"]
    assert rows.pop("total") == sum(rows.values()) == PATIENTS
    return rows


def test_what_is_bulkfetchs_own_is_no_finding(made: Made) -> None:
    private = made.archive / ".bulkfetch"
    for name in ("lock-1-of-2", "holder-1-of-2.json", "holder-2-of-2.new", "quarantine/a/b/x.jpg"):
        (private / name).parent.mkdir(parents=True, exist_ok=True)
        (private / name).touch()
    (private / "quarantine" / "link").symlink_to("/etc")
    last_journal(made.archive).with_name("failures.csv").touch()
    last_journal(made.archive).with_name("progress.json").touch()
    (made.archive / "p-empty").mkdir()
    assert findings(made.archive) == []


@pytest.mark.parametrize(
    ("root", "directory", "file", "number"),
    [
        (0o700, 0o777, 0o666, 0),
        (0o750, 0o777, 0o666, 0),
        (0o755, 0o700, 0o666, 0),
        (0o755, 0o770, 0o660, 0),
        (0o777, 0o750, 0o640, 0),
        (0o711, 0o711, 0o600, 1),
        (0o755, 0o755, 0o604, 2),
        (0o755, 0o754, 0o604, 1),
    ],
)
def test_what_others_may_get_at_is_one_finding(
    made: Made, root: int, directory: int, file: int, number: int
) -> None:
    image = an_image(made.archive)
    for path, mode in ((made.archive, root), (image.parent, directory), (image, file)):
        path.chmod(mode)
    found = findings(made.archive)
    assert [finding.kind for finding in found] == [Kind.exposed] * bool(number)
    if number:
        assert found[0].path == image.parent.name
        assert ("at 1 more" in found[0].detail) == (number == 2)


def test_an_archive_that_is_open_to_others_is_closed_by_what_is_advised(made: Made) -> None:
    paths = [made.archive, *made.archive.rglob("*")]
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    result = bulkfetch("verify", made.archive, within=read_only(made.archive))
    assert result.status == 1
    assert f"and at {len(paths) - 2:,} more" in result.err
    assert "1 exposed: close it: chmod -R o= DEST" in result.err
    subprocess.run(["chmod", "-R", "o=", made.archive], check=True)
    assert findings(made.archive) == []


def test_the_command_names_each_finding_and_what_to_do(made: Made) -> None:
    flip_a_bit(made.archive)
    drop_a_patients_line(made.archive)
    result = bulkfetch("verify", made.archive)
    assert result.status == 1
    assert result.out == ""
    image = an_image(made.archive).relative_to(made.archive)
    assert f"changed: {image}: its SHA-256 is another" in result.err
    for kind in (Kind.changed, Kind.chain):
        assert f"1 {kind}: {ADVICE[kind]}" in result.err
    as_json = bulkfetch("verify", made.archive, "--json", "--processes=1")
    assert as_json.status == 1
    *told, last = map(json.loads, as_json.out.splitlines())
    assert {line["finding"]["kind"] for line in told} == {"changed", "chain"}
    assert last["report"]["findings"] == {"changed": 1, "chain": 1}
    assert not last["report"]["ok"]


def test_what_verify_names_the_next_download_mends(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    download(simulator, manifest, archive)
    for damage in (lose_the_image, lose_both, flip_a_bit, cut_the_sidecar):
        damage(archive)
        assert findings(archive)
        assert download(simulator, manifest, archive, "--force").status == 0
        assert findings(archive) == []


def test_a_sample_is_a_share_of_the_files_and_can_be_had_again(made: Made) -> None:
    names = [f"p-{n % 7}/i-{n}.v1.jpg" for n in range(4000)]
    some = Sample(percent=5, seed="a")
    chosen = [name for name in names if is_in(some, name)]
    assert 100 < len(chosen) < 300
    assert [name for name in names if is_in(some, name)] == chosen
    assert [name for name in names if is_in(Sample(percent=5, seed="b"), name)] != chosen
    path = flip_a_bit(made.archive).relative_to(made.archive).as_posix()
    has_it = next(f"{n}" for n in range(999) if is_in(Sample(percent=20, seed=f"{n}"), path))
    lacks_it = next(f"{n}" for n in range(999) if not is_in(Sample(percent=20, seed=f"{n}"), path))
    assert findings(made.archive, percent=20, seed=lacks_it) == []
    (found,) = findings(made.archive, percent=20, seed=has_it)
    assert found.kind is Kind.changed
    result = bulkfetch("verify", made.archive, "--sample", "20%", "--seed", has_it, "--json")
    assert result.status == 1
    report = json.loads(result.out.splitlines()[-1])["report"]
    assert report["sample"] == {"percent": 20.0, "seed": has_it}
    assert report["hashed"] < report["files"]
    # What needs no hash is found in any sample.
    an_image(made.archive).unlink()
    (found,) = findings(made.archive, percent=0.001)
    assert found.kind is Kind.missing


def test_a_manifests_rows_each_have_one_state_and_what_is_not_archived_is_named(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(faults=(parse_fault("images:404@20%"),))
    patients = list(simulator.patient_ids())
    manifest = write_manifest(tmp_path / "patients.csv", patients)
    archive = tmp_path / "archive"
    first = download(simulator, manifest, archive).summary
    assert first["patients"]["failed"] > 0
    more = write_manifest(tmp_path / "more.csv", [*patients, "p-never"])
    result = bulkfetch("verify", archive, "--manifest", more, "--json")
    assert result.status == 1
    *told, last = map(json.loads, result.out.splitlines())
    rows = last["report"]["manifest"]
    assert rows["failed"] == first["patients"]["failed"]
    assert rows["never_asked"] == 1
    assert rows.pop("total") == sum(rows.values()) == len(patients) + 1
    named = [line["finding"] for line in told if "finding" in line]
    assert {
        "kind": "unarchived", "path": None, "detail": "it was never asked for",
        "patient_id": "p-never", "coverage_id": None,
    } in named  # fmt: skip
    assert len(named) == rows["failed"] + 1
    for_people = bulkfetch("verify", archive, "--manifest", more)
    assert "unarchived: patient p-never: it was never asked for" in for_people.err
    # The last word counts.
    simulator.faults.clear()
    assert download(simulator, manifest, archive).status == 0
    assert bulkfetch("verify", archive, "--manifest", manifest).status == 0


@pytest.mark.parametrize("damage", [lose_the_image, flip_a_bit, cut_the_sidecar, lose_both])
def test_a_row_whose_image_is_damaged_is_not_complete(
    made: Made, damage: Callable[[Path], Path]
) -> None:
    damage(made.archive)
    result = bulkfetch("verify", made.archive, "--manifest", made.manifest, "--json")
    assert result.status == 1
    *told, last = map(json.loads, result.out.splitlines())
    rows = last["report"]["manifest"]
    assert rows["damaged"] == 1
    assert rows.pop("total") == sum(rows.values()) == PATIENTS
    # Two runs had it, and it is lost once.
    assert [line["finding"]["kind"] for line in told if "finding" in line].count("lost") <= 1


def test_an_interrupted_run_is_said_and_is_no_damage(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=60, faults=(parse_fault("storage:stall=60@50%x1"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    process = start_bulkfetch(["download", manifest, "--out", archive], credentials(simulator))
    deadline = time.monotonic() + 120
    while len(list(archive.glob(".bulkfetch/runs/*/journal.jsonl"))) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    busy = bulkfetch("verify", archive)
    assert "a run is at work in this archive" in busy.err
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    result = bulkfetch("verify", archive, "--json")
    report = json.loads(result.out.splitlines()[-1])["report"]
    assert report["runs_without_summary"] == 1
    simulator.faults.clear()
    # Half-made files may lie about, and images whose sidecar was not written yet.
    assert set(report["findings"]) <= {"part", "stray"}
    assert download(simulator, manifest, archive).status == 0
    assert bulkfetch("verify", archive).status == 0


def read_only(path: Path) -> list[str]:
    """Before a command, to have it see a directory mounted read-only."""
    return with_mounts_of_its_own(
        f'mount --bind "{path}" "{path}" && mount -o remount,ro,bind "{path}" && "$@"'
    )


def test_a_read_only_archive_is_verified(made: Made) -> None:
    result = bulkfetch("verify", made.archive, within=read_only(made.archive))
    assert result.status == 0, result.err


def test_deeper_templates_are_followed(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    template = "{patient_hash}/{patient_id}/side={side}/{image_id}.v{version}"
    assert download(simulator, manifest, archive, "--path-template", template).status == 0
    assert findings(archive) == []
    (archive / "zz").mkdir()
    (archive / "zz" / "file").touch()
    (found,) = findings(archive)
    assert (found.kind, found.path) == (Kind.stray, "zz/file")


@pytest.mark.parametrize("what", ["nothing", "a file", "a directory"])
def test_what_is_no_archive_is_status_2(tmp_path: Path, what: str) -> None:
    path = tmp_path / "archive"
    if what == "a file":
        path.touch()
    elif what == "a directory":
        path.mkdir()
    with pytest.raises(ConfigurationError, match="no archive"):
        verify(str(path))
    result = bulkfetch("verify", path)
    assert result.status == 2
    assert "is no archive" in result.err


def test_a_bad_manifest_or_option_is_status_2_before_anything_is_read(
    made: Made, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("patient_id\n\x01\n", encoding="utf-8")
    assert bulkfetch("verify", made.archive, "--manifest", bad).status == 2
    for option in ("--sample=0%", "--sample=0.05", "--sample=101%", "--sample=x%", "--processes=0"):
        assert bulkfetch("verify", made.archive, option).status == 2
    for option, needs in (("--seed=a", "--sample"), ("--manifest-format=csv", "--manifest")):
        result = bulkfetch("verify", made.archive, option)
        assert result.status == 2
        assert f"goes with {needs}" in result.err


def test_every_kind_has_its_advice_and_its_place_in_the_readme() -> None:
    assert set(ADVICE) == set(Kind)
    readme = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")
    table = readme.partition("| finding | what it means |\n| --- | --- |\n")[2].partition("\n\n")[0]
    named = [row.split("|")[1] for row in table.splitlines()]
    assert sorted(re.findall(r"`(\w+)`", " ".join(named))) == sorted(Kind)


def strangers(archive: Path, number: int) -> None:
    image = an_image(archive)
    for name in range(number):
        image.with_name(f"{name:04}.txt").touch()


@pytest.mark.parametrize("command", ["verify", "bag"])
def test_a_person_is_told_of_some_of_a_kind_and_a_program_of_all(made: Made, command: str) -> None:
    to: list[str | Path] = ["--to", made.archive.with_name("bag")] if command == "bag" else []
    strangers(made.archive, 21)
    flip_a_bit(made.archive)
    told = bulkfetch(command, made.archive, *to).err.splitlines()
    assert len([line for line in told if line.startswith("stray: ")]) == 20
    assert "… and 1 more of stray: --json has them all" in told
    assert len([line for line in told if line.startswith("changed: ")]) == 1
    assert not any("more of changed" in line for line in told)
    lines = bulkfetch(command, made.archive, *to, "--json").out.splitlines()
    kinds = [json.loads(line)["finding"]["kind"] for line in lines[:-1]]
    assert sorted(kinds) == ["changed", *["stray"] * 21]
    strangers(made.archive, 20)
    an_image(made.archive).with_name("0020.txt").unlink()
    assert "more of" not in bulkfetch(command, made.archive, *to).err


@pytest.mark.parametrize("processes", [1, 2])
def test_a_reader_that_goes_away_ends_it_without_a_word(made: Made, processes: int) -> None:
    strangers(made.archive, 2_000)
    arguments: list[str | Path] = ["verify", made.archive, "--json", f"--processes={processes}"]
    with start_bulkfetch(arguments, {}) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b'{"finding"')
        process.stdout.close()
        process.wait(timeout=120)
        assert process.stderr
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_an_answer_that_cannot_be_written_is_not_taken_for_the_archives_failure(made: Made) -> None:
    strangers(made.archive, 2_000)
    full = ["sh", "-c", '"$@" > /dev/full', "sh"]
    result = bulkfetch("verify", made.archive, "--json", within=full)
    assert result.status == 1
    assert result.err == "bulkfetch: cannot write the answer: No space left on device\n"


def test_whose_images_a_filter_left_out_is_not_called_complete(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve()
    patients = list(simulator.patient_ids())
    made = Made(tmp_path / "archive", write_manifest(tmp_path / "patients.csv", patients))
    first = download(simulator, made.manifest, made.archive, "--side=FRONT").summary
    assert first["images"]["filtered"] > 0
    result = bulkfetch("verify", made.archive, "--manifest", made.manifest, "--json")
    assert result.status == 0
    *told, last = map(json.loads, result.out.splitlines())
    named = [line["filtered"] for line in told if "filtered" in line]
    rows = last["report"]["manifest"]
    assert rows["filtered"] == len(named) > 0
    assert rows.pop("total") == sum(rows.values()) == PATIENTS
    assert rows["complete"] + rows["filtered"] == first["patients"]["complete"]
    assert sum(line["filtered"] for line in named) == first["images"]["filtered"]
    for line in named:
        images = simulator.expected_images(line["patient_id"])
        others = [image for image in images if (image["coverage"] or {}).get("side") != "FRONT"]
        assert line["filtered"] == len(others)
        assert (line["run_id"], line["state"]) == (first["run_id"], "complete")
        assert line["filters"] == {"side": ["FRONT"]}
    words = bulkfetch("verify", made.archive, "--manifest", made.manifest).err
    left_out = first["images"]["filtered"]
    assert f"filtered: complete but for {left_out:,} images left out by --side FRONT\n" in words
    # Once a run had all, a later filter leaves nothing out.
    assert download(simulator, made.manifest, made.archive).status == 0
    assert verify_rows(made)["filtered"] == 0
    again = download(simulator, made.manifest, made.archive, "--side=FRONT").summary
    assert again["images"]["filtered"] == left_out
    assert verify_rows(made)["filtered"] == 0


def test_a_report_counts_images_and_those_no_longer_listed(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    patients = list(simulator.patient_ids())
    made = Made(tmp_path / "archive", write_manifest(tmp_path / "patients.csv", patients))
    download(simulator, made.manifest, made.archive)
    image = next(i for patient in patients for i in simulator.expected_images(patient))
    simulator.remove_image(str(image["id"]))
    assert download(simulator, made.manifest, made.archive).summary["unlisted"]
    report = verify(str(made.archive))
    assert report.ok
    assert report.unlisted == 1
    assert report.images == len(list(made.archive.glob("[!.]*/*.json"))) - 1
    assert report.sidecars == report.images + 1


def test_hostile_names_and_journals_move_no_cursor_and_lead_nowhere(made: Made) -> None:
    (an_image(made.archive).parent / "\x1b[2J\nok: all is well").touch()
    first = first_journal(made.archive)
    started, *others = first.read_text("utf-8").splitlines(keepends=True)
    heads = {"/etc": {"passwd": "a"}, "..\0": {"\x1b[2Jx": "b"}, "a/../..": {"/x\nok:": "c"}}
    started = json.dumps(json.loads(started) | {"heads": heads}) + "\n"
    first.write_text("".join([started, *others]), encoding="utf-8")
    line = {"event": "image", "outcome": "downloaded", "image_id": "\ud800", "version": 1}
    with last_journal(made.archive).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "directory": "../../../etc\0"}) + "\n")
        file.write(json.dumps({**line, "image_id": "i", "at": "x", "directory": "../etc\0"}) + "\n")
        file.write('{"event": "patient", "state": ["x"], "at": 1}\n[]\n' + "[" * 100_000 + "\n")
    result = bulkfetch("verify", made.archive)
    assert result.status == 1
    assert "Traceback" not in result.err
    assert "internal error" not in result.err
    assert "\x1b" not in result.err
    assert "\nok:" not in result.err


@contextmanager
def unprivileged() -> Iterator[list[str]]:
    """Before a command, to have it obey permissions though root runs it."""
    yield (
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
        if os.geteuid() == 0
        else []
    )


def test_what_may_not_be_read_is_named(made: Made) -> None:
    image = an_image(made.archive)
    image.chmod(0)
    sidecar = max(made.archive.glob("*/*.json"))
    sidecar.chmod(0)
    with unprivileged() as within:
        result: Result = bulkfetch("verify", made.archive, within=within)
    assert result.status == 1
    assert f"unreadable: {image.relative_to(made.archive)}" in result.err
    assert f"unreadable: {sidecar.relative_to(made.archive)}" in result.err
