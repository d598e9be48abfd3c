"""Journals as chains: what somebody with write access removed or changed together is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bulkfetch import Finding, Summary, chain, verify
from bulkfetch.archive.tree import LocalTree
from bulkfetch.simulator import Simulator, SimulatorConfig
from bulkfetch.verification import Kind
from tests.conftest import Serve, bulkfetch, download, serving, write_manifest
from tests.faulty import journal, move, uploaded
from tests.test_processes import ended, started, wait_for_journals

RUNS = 3


class Made(NamedTuple):
    """An archive of some runs of two processes each, and what they told, the first one first."""

    archive: Path
    runs: list[dict[str, Any]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("sound")
    with serving(SimulatorConfig(patients=60)) as simulator:
        manifest = write_manifest(root / "patients.csv", list(simulator.patient_ids()))
        runs = []
        for number in range(RUNS):
            move(simulator, uploaded(simulator)[number][0], display_name=f"name {number}")
            simulator.patch_image(uploaded(simulator)[number + 20][0], status="FAILED")
            # Nothing ends before the second process has begun, however long that takes.
            simulator.faults.add("images:latency=1")
            process = started(
                simulator, manifest, "--out", root / "archive", "--processes=2",
                "--operator=nightly", "--purpose=test of disclosure",
            )  # fmt: skip
            wait_for_journals(root / "archive", process, 2 * number + 2)
            simulator.faults.clear()
            result = ended(process)
            assert result.status == 0, result.err
            assert f"head {result.summary['head']}" in result.err
            runs.append(result.summary)
    return Made(root / "archive", runs)


@pytest.fixture
def made(sound: Made, tmp_path: Path) -> Made:
    shutil.copytree(sound.archive, tmp_path / "archive")
    return Made(tmp_path / "archive", sound.runs)


def findings(archive: Path, **options: Any) -> list[Finding]:
    found: list[Finding] = []
    verify(str(archive), found=found.append, **options)
    return found


def journals_of(made: Made, run: int) -> list[Path]:
    return sorted(first_journal(made, run).parent.glob("*.jsonl"))


def first_journal(made: Made, run: int) -> Path:
    return made.archive / ".bulkfetch" / "runs" / str(made.runs[run]["run_id"]) / chain.FIRST


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def written_anew(path: Path, kept: list[bytes], previous: str | None) -> None:
    """Write a journal that is a sound chain by itself."""
    made = []
    for line in kept:
        event = json.loads(line)
        event.pop("previous", None)
        if previous is not None:
            event["previous"] = previous
        made.append(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        previous = hashlib.sha256(made[-1]).hexdigest()
    path.write_bytes(b"".join(made))


def an_image_of(made: Made, run: int) -> tuple[Path, dict[str, Any]]:
    """A journal of a run, and an image's event in it."""
    for path in journals_of(made, run):
        for event in map(json.loads, lines(path)):
            if event["event"] == "image" and event["outcome"] == "downloaded":
                return path, event
    raise LookupError


def remove_files(made: Made, event: dict[str, Any]) -> None:
    stem = f"{event['image_id']}.v{event['version']}."
    for path in (made.archive / event["directory"]).glob(f"{stem}*"):
        path.unlink()


def without(path: Path, image_id: str) -> list[bytes]:
    return [line for line in lines(path) if image_id.encode() not in line]


def test_each_line_has_the_digest_of_the_one_before_and_each_run_names_all_earlier_ones(
    sound: Made,
) -> None:
    assert findings(sound.archive) == []
    for number, summary in enumerate(sound.runs):
        first, second = lines(first_journal(sound, number)), None
        started, finished = json.loads(first[0]), json.loads(first[-1])
        assert "previous" not in started
        assert (started["operator"], started["purpose"]) == ("nightly", "test of disclosure")
        assert started["heads"] == {
            earlier["run_id"]: {"journal.jsonl": earlier["head"]} for earlier in sound.runs[:number]
        }
        for path in journals_of(sound, number):
            before = None if path.name == chain.FIRST else hashlib.sha256(first[0]).hexdigest()
            for line in lines(path):
                assert json.loads(line).get("previous") == before
                before = hashlib.sha256(line).hexdigest()
            if path.name != chain.FIRST:
                second = before
        assert finished["heads"] == {"journal-2.jsonl": second}
        assert finished["images"] == summary["images"]
        assert summary["head"] == hashlib.sha256(first[-1]).hexdigest()
    assert findings(sound.archive, heads=[summary["head"] for summary in sound.runs]) == []


def test_a_sidecars_digest_is_in_the_journal(sound: Made) -> None:
    for run in range(RUNS):
        for path in journals_of(sound, run):
            for event in map(json.loads, lines(path)):
                if event["event"] == "image" and "sidecar" in event:
                    ending = f"r{event['revision']}.json" if "revision" in event else "json"
                    name = f"{event['image_id']}.v{event['version']}.{ending}"
                    data = (sound.archive / event["directory"] / name).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == event["sidecar"]


@pytest.mark.parametrize("run", range(RUNS))
def test_an_image_its_sidecar_and_its_line_that_were_removed_together_are_noticed(
    made: Made, run: int
) -> None:
    path, event = an_image_of(made, run)
    remove_files(made, event)
    for other in range(RUNS):
        for each in journals_of(made, other):
            each.write_bytes(b"".join(without(each, event["image_id"])))
    assert Kind.chain in {finding.kind for finding in findings(made.archive)}
    assert any(
        str(finding.path).startswith(path.relative_to(made.archive).as_posix())
        for finding in findings(made.archive)
    )


@pytest.mark.parametrize("run", range(RUNS - 1))
def test_a_journal_written_anew_is_noticed_by_what_later_runs_name(made: Made, run: int) -> None:
    path, event = an_image_of(made, run)
    start = lines(first_journal(made, run))[0]
    previous = None if path.name == chain.FIRST else hashlib.sha256(start).hexdigest()
    remove_files(made, event)
    written_anew(path, without(path, event["image_id"]), previous)
    found = [finding for finding in findings(made.archive) if finding.kind is Kind.chain]
    assert found
    assert {str(finding.path).partition(":")[0] for finding in found} <= {
        each.relative_to(made.archive).as_posix() for each in journals_of(made, run)
    }


def test_an_earlier_run_that_was_removed_is_noticed(made: Made) -> None:
    shutil.rmtree(first_journal(made, 0).parent)
    kinds = {finding.path: finding.kind for finding in findings(made.archive)}
    name = first_journal(made, 0).relative_to(made.archive).as_posix()
    assert kinds == {name: Kind.chain}


def test_a_journal_of_another_process_that_was_removed_is_noticed(made: Made) -> None:
    (other,) = set(journals_of(made, RUNS - 1)) - {first_journal(made, RUNS - 1)}
    other.unlink()
    assert Kind.chain in {finding.kind for finding in findings(made.archive)}


def test_the_last_run_is_held_to_the_head_that_was_kept_elsewhere(made: Made) -> None:
    path = first_journal(made, RUNS - 1)
    _, event = an_image_of(made, RUNS - 1)
    image_id = event["image_id"]
    remove_files(made, event)
    written_anew(path, without(path, image_id), None)
    summary = json.loads(path.with_name("summary.json").read_bytes())
    (other,) = set(journals_of(made, RUNS - 1)) - {path}
    written_anew(other, without(other, image_id), hashlib.sha256(lines(path)[0]).hexdigest())
    last = json.loads(lines(path)[-1])
    last["heads"] = {other.name: hashlib.sha256(lines(other)[-1]).hexdigest()}
    written_anew(path, [*lines(path)[:-1], json.dumps(last).encode()], None)
    head = hashlib.sha256(lines(path)[-1]).hexdigest()
    path.with_name("summary.json").write_text(json.dumps(summary | {"head": head}))
    # Nothing in the archive itself can tell.
    assert findings(made.archive) == []
    result = bulkfetch("verify", made.archive, "--head", summary["head"])
    assert result.status == 1
    assert summary["head"] in result.err
    assert bulkfetch("verify", made.archive, "--head", "abc").status == 2


@pytest.mark.parametrize("field", ["record", "manifest", "sha256"])
def test_a_sidecar_that_was_written_anew_is_noticed(made: Made, field: str) -> None:
    _, event = an_image_of(made, 0)
    name = f"{event['image_id']}.v{event['version']}.json"
    path = made.archive / event["directory"] / name
    sidecar = json.loads(path.read_bytes())
    if field == "record":
        sidecar["record"]["display_name"] = "another"
    elif field == "manifest":
        sidecar["manifest"] = {"mrn": "another"}
    else:
        image = path.with_name(sidecar["file"]["path"])
        data = image.read_bytes()
        image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        sidecar["file"]["sha256"] = hashlib.sha256(image.read_bytes()).hexdigest()
    path.write_text(json.dumps(sidecar), encoding="utf-8")
    (found,) = findings(made.archive)
    assert (found.kind, found.path) == (
        Kind.rewritten,
        path.relative_to(made.archive).as_posix(),
    )


def test_the_latest_revision_that_was_removed_is_noticed(made: Made) -> None:
    path = next(made.archive.glob("[!.]*/*.r2.json"))
    path.unlink()
    (found,) = findings(made.archive)
    assert (found.kind, found.path) == (Kind.lost, path.relative_to(made.archive).as_posix())


def test_sums_that_were_edited_are_noticed(made: Made) -> None:
    path = first_journal(made, 1).with_name("summary.json")
    summary = json.loads(path.read_bytes())
    summary["patients"]["empty"] -= 1
    summary["patients"]["complete"] += 1
    path.write_text(json.dumps(summary), encoding="utf-8")
    (found,) = findings(made.archive)
    assert (found.kind, found.path) == (Kind.journal, path.relative_to(made.archive).as_posix())


def test_what_was_damaged_and_fetched_anew_is_as_the_later_run_wrote_it(
    serve: Serve, tmp_path: Path
) -> None:
    simulator, archive, manifest = prepared(serve, tmp_path)
    for _ in range(2):
        sidecar = min(archive.glob("[!.]*/*.json"))
        sidecar.write_bytes(b"{}")
        assert download(simulator, manifest, archive, "--force").status == 0
    assert findings(archive) == []


def test_a_killed_runs_journal_is_named_as_far_as_it_came(serve: Serve, tmp_path: Path) -> None:
    simulator, archive, manifest = prepared(serve, tmp_path)
    (path,) = archive.glob(".bulkfetch/runs/*/journal.jsonl")
    path.with_name("summary.json").unlink()
    kept = lines(path)[:-2]
    path.write_bytes(b"".join(kept) + b'{"event":"ima')
    result = download(simulator, manifest, archive)
    started = journal(archive, result.summary["run_id"])[0]
    assert started["heads"] == {path.parent.name: {path.name: chain.digest(kept[-1])}}
    assert findings(archive) == []
    path.write_bytes(b"".join(kept[:-1]))
    assert {finding.kind for finding in findings(archive)} == {Kind.chain}


@pytest.mark.parametrize(
    "rubbish", [b"", b"\n", b"{}\n", b"no line", b"\0" * 100_000, b'{"event":"run_finished",', None]
)
def test_a_run_begins_whatever_earlier_ones_left(
    serve: Serve, tmp_path: Path, rubbish: bytes | None
) -> None:
    simulator, archive, manifest = prepared(serve, tmp_path)
    (path,) = archive.glob(".bulkfetch/runs/*/journal.jsonl")
    path.unlink()
    if rubbish is None:
        path.mkdir()
    else:
        path.write_bytes(rubbish)
    (path.parent.parent / "stray").touch()
    assert download(simulator, manifest, archive).status == 0


@pytest.mark.parametrize("size", [1, 10, 2**16 - 1, 2**16, 2**16 + 1, 2**17 + 5])
def test_the_last_whole_line_is_found_whatever_its_size(tmp_path: Path, size: int) -> None:
    tree, path = LocalTree(tmp_path), tmp_path / "journal.jsonl"
    line = b"x" * size + b"\n"
    for before in (b"", b"first\n", b"y" * 2**16 + b"\n"):
        for after in (b"", b"cut", b"z" * (2**16 + 3)):
            path.write_bytes(before + line + after)
            assert chain.last_line(tree, path.name) == line
    path.write_bytes(b"no end")
    assert chain.last_line(tree, path.name) == b""
    assert chain.last_line(tree, "nowhere") == b""


def test_operator_and_purpose_are_one_line(serve: Serve, tmp_path: Path) -> None:
    simulator, archive, manifest = prepared(serve, tmp_path)
    for wrong in ("--operator=a\nb", "--purpose= ", f"--purpose={'x' * 201}"):
        result = download(simulator, manifest, archive, wrong)
        assert result.status == 2
        assert wrong.partition("=")[0] in result.err


def prepared(serve: Serve, tmp_path: Path) -> tuple[Simulator, Path, Path]:
    simulator = serve(patients=8)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    assert download(simulator, manifest, archive).status == 0
    return simulator, archive, manifest


def test_a_summary_from_python_has_the_head(made: Made) -> None:
    path = first_journal(made, 0).with_name("summary.json")
    assert Summary.model_validate_json(path.read_bytes()).head == made.runs[0]["head"]


def test_what_was_quarantined_with_its_revisions_is_not_lost(serve: Serve, tmp_path: Path) -> None:
    simulator, archive, manifest = prepared(serve, tmp_path)
    image_id, version = uploaded(simulator)[0]
    simulator.patch_image(image_id, status="FAILED")
    assert download(simulator, manifest, archive).status == 0
    (revision,) = archive.glob(f"[!.]*/{image_id}.v{version}.r2.json")
    simulator.patch_image(image_id)
    revision.write_bytes(b"{}")
    result = download(simulator, manifest, archive)
    assert result.status == 0
    assert not revision.exists()
    assert "quarantined" in [e["event"] for e in journal(archive, result.summary["run_id"])]
    assert findings(archive) == []
    # As if the run had been killed before it told of what it wrote.
    path = archive / ".bulkfetch" / "runs" / result.summary["run_id"] / chain.FIRST
    told = [json.loads(line)["event"] for line in lines(path)].index("quarantined")
    path.write_bytes(b"".join(lines(path)[: told + 1]))
    path.with_name("summary.json").unlink()
    assert download(simulator, manifest, archive).status == 0
    assert findings(archive) == []
    # An excuse for nothing that was done later.
    sidecar = next(archive.glob(f"[!.]*/{image_id}.v{version}.json"))
    sidecar.with_name(json.loads(sidecar.read_bytes())["file"]["path"]).unlink()
    sidecar.unlink()
    assert {finding.kind for finding in findings(archive)} == {Kind.lost}


@pytest.mark.parametrize("number", [1, 2])
def test_what_was_appended_after_a_runs_end_is_noticed(made: Made, number: int) -> None:
    path = journals_of(made, 0)[number - 1]
    previous = chain.digest(lines(path)[-1])
    at = "2026-07-01T00:00:00Z"
    line = {"event": "patient", "at": at, "state": "empty", "previous": previous}
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
    found = findings(made.archive)
    assert (Kind.chain, "it comes after the end") in [(one.kind, one.detail) for one in found]


def test_a_run_under_another_name_is_noticed(made: Made) -> None:
    run = first_journal(made, 0).parent
    run.rename(run.with_name("20200101T000000Z-abcdef"))
    assert Kind.chain in {finding.kind for finding in findings(made.archive)}


def test_the_first_line_is_on_the_disk_before_another_process_begins(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=50, storage_latency_s=3)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    process = started(simulator, manifest, "--out", tmp_path / "archive", "--processes=2")
    try:
        wait_for_journals(tmp_path / "archive", process, 2)
        assert list((tmp_path / "archive").glob(".bulkfetch/runs/*/journal.jsonl"))
    finally:
        process.kill()
        process.communicate()
    assert Kind.chain not in {finding.kind for finding in findings(tmp_path / "archive")}


def test_pipes_links_and_endless_lines_in_place_of_journals_hold_nothing_up(
    serve: Serve, tmp_path: Path
) -> None:
    simulator, archive, manifest = prepared(serve, tmp_path)
    runs = archive / ".bulkfetch" / "runs"
    for number, name in enumerate(("pipe", "link", "endless")):
        run = runs / f"20250101T00000{number}Z-abcdef"
        run.mkdir()
        path = run / chain.FIRST
        if name == "pipe":
            os.mkfifo(path)
        elif name == "link":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(200 * 2**20)
    (runs / os.fsdecode(b"20250101T000000Z-\xff\xff\xff")).mkdir()
    result = download(simulator, manifest, archive)
    assert result.status == 0, result.err
    (run_id,) = journal(archive, result.summary["run_id"])[0]["heads"]
    assert not run_id.startswith("2025")
    # The pipe, and what is no run's name, are strays; what was not yet a line is nothing.
    assert sorted(finding.kind for finding in findings(archive)) == ["link", "stray", "stray"]
