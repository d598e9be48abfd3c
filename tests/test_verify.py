"""`bulkfetch verify`: every kind of damage, planted one at a time in a sound archive, is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
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


def an_image(archive: Path) -> Path:
    return min(path for path in archive.glob("[!.]*/*") if path.suffix == ".jpg")


def a_sidecar(archive: Path) -> Path:
    return an_image(archive).with_suffix(".json")


def last_journal(archive: Path) -> Path:
    # Two runs of one second are told apart by what they say, and not by their names.
    journals = archive.glob(".bulkfetch/runs/*/journal.jsonl")
    return max(journals, key=lambda path: path.read_text("utf-8").partition('"at":')[2][:32])


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), encoding="utf-8")


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


def lose_the_image(archive: Path) -> Path:
    path = an_image(archive)
    path.unlink()
    return path


def lengthen_the_image(archive: Path) -> Path:
    path = an_image(archive)
    with path.open("ab") as file:
        file.write(b"x")
    return path


def flip_a_bit(archive: Path) -> Path:
    path = an_image(archive)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def cut_the_sidecar(archive: Path) -> Path:
    path = a_sidecar(archive)
    path.write_bytes(path.read_bytes()[:-20])
    # Its image is no one's now, but that is the same damage.
    return path


def empty_the_sidecar(archive: Path) -> Path:
    path = a_sidecar(archive)
    path.write_bytes(b"")
    return path


def age_the_reader(archive: Path) -> Path:
    path = a_sidecar(archive)
    edit(path, schema_version=2)
    return path


def point_elsewhere(archive: Path) -> Path:
    path = a_sidecar(archive)
    file = json.loads(path.read_bytes())["file"]
    edit(path, file={**file, "path": "../outside.jpg"})
    return path


def name_another_image(archive: Path) -> Path:
    path = a_sidecar(archive)
    edit(path, image_id="another")
    return path


def rename_the_patient(archive: Path) -> Path:
    directory = an_image(archive).parent
    directory.rename(directory.with_name("somebody-else"))
    return archive / "somebody-else"


def merge_another_accounts(archive: Path) -> Path:
    path = a_sidecar(archive)
    record = json.loads(path.read_bytes())["record"]
    edit(path, record={**record, "organization_id": "another"})
    return path


def lose_the_first_revision(archive: Path) -> Path:
    path = next(archive.glob("*/*.r2.json"))
    first = path.with_name(path.name.replace(".r2.json", ".json"))
    first.unlink()
    return first


def lose_both(archive: Path) -> Path:
    path = a_sidecar(archive)
    an_image(archive).unlink()
    path.unlink()
    return path


def leave_a_stranger(archive: Path) -> Path:
    path = an_image(archive).with_name("notes.txt")
    path.write_text("mine", encoding="utf-8")
    return path


def leave_a_stranger_above(archive: Path) -> Path:
    path = archive / "README"
    path.write_text("mine", encoding="utf-8")
    return path


def leave_a_directory(archive: Path) -> Path:
    path = an_image(archive).with_name("deeper")
    path.mkdir()
    return path


def leave_a_part(archive: Path) -> Path:
    path = an_image(archive).with_name(".i-1.v1.part")
    path.write_bytes(b"half")
    return path


def link_an_image(archive: Path) -> Path:
    path = an_image(archive).with_name("i-9.v1.jpg")
    path.symlink_to("/etc/hostname")
    return path


def link_a_patient(archive: Path) -> Path:
    path = archive / "p-9"
    path.symlink_to("/etc")
    return path


def replace_by_a_link(archive: Path) -> Path:
    path = an_image(archive)
    path.rename(archive.parent / "moved.jpg")
    path.symlink_to(archive.parent / "moved.jpg")
    return path


def replace_by_a_pipe(archive: Path) -> Path:
    path = an_image(archive)
    path.unlink()
    os.mkfifo(path)
    return path


def cut_the_journal(archive: Path) -> Path:
    path = last_journal(archive)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def drop_a_patients_line(archive: Path) -> Path:
    path = last_journal(archive)
    lines = path.read_bytes().splitlines(keepends=True)
    dropped = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == "patient")
    path.write_bytes(b"".join(lines[:dropped] + lines[dropped + 1 :]))
    return path.parent


def tear_the_summary(archive: Path) -> Path:
    path = last_journal(archive).with_name("summary.json")
    path.write_bytes(path.read_bytes()[:-20])
    return path


DAMAGE: list[tuple[Callable[[Path], Path], set[Kind]]] = [
    (lose_the_image, {Kind.missing}),
    (lengthen_the_image, {Kind.changed}),
    (flip_a_bit, {Kind.changed}),
    (cut_the_sidecar, {Kind.torn, Kind.stray}),
    (empty_the_sidecar, {Kind.torn, Kind.stray}),
    (age_the_reader, {Kind.schema, Kind.stray}),
    (point_elsewhere, {Kind.inconsistent, Kind.stray}),
    (name_another_image, {Kind.inconsistent}),
    (rename_the_patient, {Kind.misplaced, Kind.lost}),
    (merge_another_accounts, {Kind.foreign}),
    (lose_the_first_revision, {Kind.missing}),
    (lose_both, {Kind.lost}),
    (leave_a_stranger, {Kind.stray}),
    (leave_a_stranger_above, {Kind.stray}),
    (leave_a_directory, {Kind.stray}),
    (leave_a_part, {Kind.part}),
    (link_an_image, {Kind.link}),
    (link_a_patient, {Kind.link}),
    (replace_by_a_link, {Kind.link, Kind.missing}),
    (replace_by_a_pipe, {Kind.stray, Kind.missing}),
    (cut_the_journal, {Kind.journal}),
    (drop_a_patients_line, {Kind.journal, Kind.chain}),
    (tear_the_summary, {Kind.journal}),
]


@pytest.mark.parametrize(
    ("damage", "kinds"), DAMAGE, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_kind_of_damage_is_named(
    made: Made, damage: Callable[[Path], Path], kinds: set[Kind]
) -> None:
    named = damage(made.archive).relative_to(made.archive).as_posix()
    before = state(made.archive)
    found = findings(made.archive)
    assert {finding.kind for finding in found} == kinds
    assert any(finding.path and finding.path.startswith(named) for finding in found)
    assert state(made.archive) == before


def test_the_command_names_each_finding_and_what_to_do(made: Made) -> None:
    flip_a_bit(made.archive)
    drop_a_patients_line(made.archive)
    result = bulkfetch("verify", made.archive)
    assert result.status == 1
    assert result.out == ""
    image = an_image(made.archive).relative_to(made.archive)
    assert f"changed: {image}: its SHA-256 is another" in result.err
    for kind in (Kind.changed, Kind.journal, Kind.chain):
        assert f"1 {kind}: {ADVICE[kind]}" in result.err
    as_json = bulkfetch("verify", made.archive, "--json", "--processes=1")
    assert as_json.status == 1
    *told, last = map(json.loads, as_json.out.splitlines())
    assert {line["finding"]["kind"] for line in told} == {"changed", "journal", "chain"}
    assert last["report"]["findings"] == {"changed": 1, "journal": 1, "chain": 1}
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


def test_a_read_only_archive_is_verified(made: Made) -> None:
    path = made.archive
    script = f'mount --bind "{path}" "{path}" && mount -o remount,ro,bind "{path}" && "$@"'
    result = bulkfetch("verify", made.archive, within=with_mounts_of_its_own(script))
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


def test_every_kind_has_its_advice() -> None:
    assert set(ADVICE) == set(Kind)


def test_hostile_names_and_journals_move_no_cursor_and_lead_nowhere(made: Made) -> None:
    (an_image(made.archive).parent / "\x1b[2J\nok: all is well").touch()
    line = {"event": "image", "outcome": "downloaded", "image_id": "\ud800", "version": 1}
    with last_journal(made.archive).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "directory": "../../../etc\0"}) + "\n")
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
