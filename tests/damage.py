"""Every kind of damage, to be planted in a sound archive; each returns the path to be named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bulkfetch.verification import Kind


def an_image(archive: Path) -> Path:
    return min(path for path in archive.glob("[!.]*/*") if path.suffix == ".jpg")


def a_sidecar(archive: Path) -> Path:
    return an_image(archive).with_suffix(".json")


def last_journal(archive: Path) -> Path:
    # Two runs of one second are told apart by what they say, and not by their names.
    journals = archive.glob(".bulkfetch/runs/*/journal.jsonl")
    return max(journals, key=lambda path: path.read_text("utf-8").partition('"at":')[2][:32])


def first_journal(archive: Path) -> Path:
    (path,) = set(archive.glob(".bulkfetch/runs/*/journal.jsonl")) - {last_journal(archive)}
    return path


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), encoding="utf-8")


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


def lose_the_last_revision(archive: Path) -> Path:
    path = next(archive.glob("*/*.r2.json"))
    path.unlink()
    return path


def cut_the_last_revision(archive: Path) -> Path:
    path = next(archive.glob("*/*.r2.json"))
    path.write_bytes(path.read_bytes()[:-20])
    return path


def rewrite_a_revision(archive: Path) -> Path:
    path = next(archive.glob("*/*.r2.json"))
    file = json.loads(path.read_bytes())["file"]
    edit(path, file={**file, "sha256": "0" * 64})
    # Which of the two is right, the archive does not say.
    return path.with_name(path.name.replace(".r2.json", ".json"))


def edit_a_record(archive: Path) -> Path:
    path = a_sidecar(archive)
    edit(path, record={**json.loads(path.read_bytes())["record"], "display_name": "another"})
    return path


def lose_the_sidecar(archive: Path) -> Path:
    path = a_sidecar(archive)
    path.unlink()
    # The journal has it, too; but what is there is named once.
    return an_image(archive)


def lose_both(archive: Path) -> Path:
    path = a_sidecar(archive)
    an_image(archive).unlink()
    path.unlink()
    return path


def rename_an_image(archive: Path) -> Path:
    image, sidecar = an_image(archive), a_sidecar(archive)
    image.rename(image.with_name("another.v1.jpg"))
    return sidecar.rename(sidecar.with_name("another.v1.json"))


def move_an_image(archive: Path) -> Path:
    there = an_image(archive).parent.with_name("somebody-else")
    there.mkdir(mode=0o700)
    image, sidecar = an_image(archive), a_sidecar(archive)
    image.rename(there / image.name)
    return sidecar.rename(there / sidecar.name)


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


def link_a_sidecar(archive: Path) -> Path:
    path = a_sidecar(archive)
    path.rename(archive.parent / "moved.json")
    path.symlink_to(archive.parent / "moved.json")
    return path


def link_the_latest_revision(archive: Path) -> Path:
    path = next(archive.glob("*/*.r2.json"))
    path.rename(archive.parent / "moved.json")
    path.symlink_to(archive.parent / "moved.json")
    return path


def leave_a_revision_of_nothing(archive: Path) -> Path:
    path = a_sidecar(archive).with_suffix(".r99999999999.json")
    path.symlink_to("/dev/zero")
    return path


def replace_a_patient_by_a_link(archive: Path) -> Path:
    path = an_image(archive).parent
    path.rename(archive.parent / "moved")
    path.symlink_to(archive.parent / "moved")
    return path


def replace_a_patient_by_a_file(archive: Path) -> Path:
    path = an_image(archive).parent
    shutil.rmtree(path)
    path.touch()
    return path


def open_a_patient_to_others(archive: Path) -> Path:
    archive.chmod(0o755)
    an_image(archive).parent.chmod(0o705)
    an_image(archive).chmod(0o604)
    return an_image(archive).parent


def leave_a_stranger_beside(archive: Path) -> Path:
    path = archive / ".bulkfetch" / "notes.txt"
    path.touch()
    return path


def leave_a_stranger_among_runs(archive: Path) -> Path:
    path = archive / ".bulkfetch" / "runs" / "20250101T000000Z-copy"
    shutil.copytree(last_journal(archive).parent, path)
    return path


def leave_a_file_among_runs(archive: Path) -> Path:
    path = archive / ".bulkfetch" / "runs" / "20250101T000000Z-abcdef"
    path.touch()
    return path


def leave_a_stranger_in_a_run(archive: Path) -> Path:
    path = last_journal(archive).with_name("journal-2.jsonl~")
    path.touch()
    return path


def leave_a_directory_in_a_run(archive: Path) -> Path:
    path = last_journal(archive).with_name("journal-2.jsonl")
    path.mkdir()
    return path


def leave_a_stranger_among_parts(archive: Path) -> Path:
    path = archive / ".bulkfetch" / "parts" / "notes.json"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def leave_a_half_made_summary(archive: Path) -> Path:
    path = last_journal(archive).with_name(".summary.json.part")
    path.touch()
    return path


def link_the_quarantine(archive: Path) -> Path:
    path = archive / ".bulkfetch" / "quarantine"
    path.symlink_to(archive.parent)
    return path


def link_a_run(archive: Path) -> Path:
    path = first_journal(archive).parent
    path.rename(archive.parent / "moved")
    path.symlink_to(archive.parent / "moved")
    return path


def link_a_journal(archive: Path) -> Path:
    path = first_journal(archive)
    path.rename(archive.parent / "moved")
    path.symlink_to(archive.parent / "moved")
    return path


def link_a_summary(archive: Path) -> Path:
    path = last_journal(archive).with_name("summary.json")
    path.rename(archive.parent / "moved")
    path.symlink_to(archive.parent / "moved")
    return path


def cut_the_journal(archive: Path) -> Path:
    path = last_journal(archive)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def cut_the_first_journal(archive: Path) -> Path:
    path = first_journal(archive)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def drop_the_end_of_a_journal(archive: Path) -> Path:
    path = first_journal(archive)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return path


def overwrite_the_first_journal(archive: Path) -> Path:
    path = first_journal(archive)
    path.write_bytes(b"\0\n" * 50)
    return path


def blank_a_line(archive: Path) -> Path:
    path = first_journal(archive)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[4:]]))
    return path


def drop_a_patients_line(archive: Path) -> Path:
    path = last_journal(archive)
    lines = path.read_bytes().splitlines(keepends=True)
    dropped = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == "patient")
    path.write_bytes(b"".join(lines[:dropped] + lines[dropped + 1 :]))
    return path


def lose_the_first_journal(archive: Path) -> Path:
    path = first_journal(archive)
    path.unlink()
    return path


def lose_the_last_journal(archive: Path) -> Path:
    path = last_journal(archive)
    path.unlink()
    # No later run names it, but its summary does.
    return path.with_name("summary.json")


def lose_the_first_run(archive: Path) -> Path:
    path = first_journal(archive)
    shutil.rmtree(path.parent)
    return path


def tear_the_summary(archive: Path) -> Path:
    path = last_journal(archive).with_name("summary.json")
    path.write_bytes(path.read_bytes()[:-20])
    return path


DAMAGE: list[tuple[Callable[[Path], Path], Kind]] = [
    (lose_the_image, Kind.missing),
    (lengthen_the_image, Kind.changed),
    (flip_a_bit, Kind.changed),
    (cut_the_sidecar, Kind.torn),
    (empty_the_sidecar, Kind.torn),
    (cut_the_last_revision, Kind.torn),
    (age_the_reader, Kind.schema),
    (point_elsewhere, Kind.inconsistent),
    (name_another_image, Kind.inconsistent),
    (rewrite_a_revision, Kind.inconsistent),
    (edit_a_record, Kind.rewritten),
    (rename_an_image, Kind.misplaced),
    (move_an_image, Kind.misplaced),
    (merge_another_accounts, Kind.foreign),
    (lose_the_first_revision, Kind.missing),
    (lose_the_last_revision, Kind.lost),
    (lose_the_sidecar, Kind.stray),
    (lose_both, Kind.lost),
    (leave_a_stranger, Kind.stray),
    (leave_a_stranger_above, Kind.stray),
    (leave_a_directory, Kind.stray),
    (leave_a_part, Kind.part),
    (link_an_image, Kind.link),
    (link_a_patient, Kind.link),
    (replace_by_a_link, Kind.link),
    (replace_by_a_pipe, Kind.stray),
    (link_a_sidecar, Kind.link),
    (link_the_latest_revision, Kind.link),
    (leave_a_revision_of_nothing, Kind.link),
    (replace_a_patient_by_a_link, Kind.link),
    (replace_a_patient_by_a_file, Kind.stray),
    (open_a_patient_to_others, Kind.exposed),
    (leave_a_stranger_beside, Kind.stray),
    (leave_a_stranger_among_runs, Kind.stray),
    (leave_a_file_among_runs, Kind.stray),
    (leave_a_stranger_in_a_run, Kind.stray),
    (leave_a_directory_in_a_run, Kind.stray),
    (leave_a_stranger_among_parts, Kind.stray),
    (leave_a_half_made_summary, Kind.part),
    (link_the_quarantine, Kind.link),
    (link_a_run, Kind.link),
    (link_a_journal, Kind.link),
    (link_a_summary, Kind.link),
    (cut_the_journal, Kind.journal),
    (cut_the_first_journal, Kind.journal),
    (drop_the_end_of_a_journal, Kind.chain),
    (overwrite_the_first_journal, Kind.journal),
    (blank_a_line, Kind.journal),
    (drop_a_patients_line, Kind.chain),
    (lose_the_first_journal, Kind.chain),
    (lose_the_last_journal, Kind.journal),
    (lose_the_first_run, Kind.chain),
    (tear_the_summary, Kind.journal),
]
