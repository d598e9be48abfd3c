"""Archives that are none, or not as a run left them: each command says so, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from bulkfetch.simulator import Simulator, SimulatorConfig
from tests.conftest import (
    Result,
    bulkfetch,
    credentials,
    download,
    serving,
    sidecars,
    write_manifest,
)

# An exit status, and words that are said with it.
Answer = tuple[int, *tuple[str, ...]]
Answers = Mapping[str, Answer]
COMMANDS = ("verify", "status", "bag", "download", "doctor")


class Account(NamedTuple):
    simulator: Simulator
    manifest: Path
    archive: Path


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Account]]:
    """Two accounts, each with an archive of all that it has."""
    configs = [
        SimulatorConfig(patients=4, seed=seed, organization_id=f"organization-{seed}")
        for seed in (1, 2)
    ]
    with serving(configs[0]) as ours, serving(configs[1]) as theirs:
        made = []
        for simulator in (ours, theirs):
            root = tmp_path_factory.mktemp("account")
            manifest = write_manifest(root / "patients.csv", list(simulator.patient_ids()))
            account = Account(simulator, manifest, root / "archive")
            assert download(simulator, manifest, account.archive).status == 0
            made.append(account)
        yield made


@pytest.fixture
def ours(accounts: list[Account], tmp_path: Path) -> Account:
    """The first account, with a copy of its archive to be damaged."""
    archive = shutil.copytree(accounts[0].archive, tmp_path / "archive")
    return accounts[0]._replace(archive=archive)


def run(command: str, account: Account, place: Path) -> Result:
    """Run a command on a place, as whoever takes it for the account's archive would."""
    environment = credentials(account.simulator)
    if command == "download":
        return download(account.simulator, account.manifest, place)
    if command == "doctor":
        return bulkfetch("doctor", "--out", place, environment=environment)
    to = ("--to", place.with_name("bag")) if command == "bag" else ()
    return bulkfetch(command, place, *to)


def said(result: Result, answer: Answer) -> None:
    status, *words = answer
    assert result.status == status, result.err
    for word in words:
        assert word in result.err
    for word in ("Traceback", "internal error"):
        assert word not in result.err


def everything(place: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in place.rglob("*")}


NONE = dict.fromkeys(("verify", "status", "bag"), (2, "is no archive"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("make", "answers"),
    [
        (lambda _: None, {"download": (0, "complete"), "doctor": (0, "not there yet")}),
        (Path.touch, {"download": (4, "is a file"), "doctor": (1, "is a file")}),
        (Path.mkdir, {"download": (0, "complete"), "doctor": (0, "none yet")}),
    ],
    ids=["missing", "a file", "an empty directory"],
)
def test_a_place_that_is_no_archive(
    accounts: list[Account],
    tmp_path: Path,
    command: str,
    make: Callable[[Path], object],
    answers: Answers,
) -> None:
    place = tmp_path / "place"
    make(place)
    said(run(command, accounts[0], place), {**NONE, **answers}[command])
    assert not (tmp_path / "bag").exists()
    if command != "download" and place.is_dir():
        assert not everything(place)


Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def says(**fields: object) -> Damage:
    """Have it say something else."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), "utf-8")


def instead(make: Damage) -> Damage:
    """Put something in its place, and the file itself beside it."""

    def damage(path: Path) -> None:
        path.rename(path.with_suffix(".moved"))
        make(path)

    return damage


def link(path: Path) -> None:
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, ["torn", "restore it from a copy"]),
        (empty, ["torn"]),
        (says(api_host="x" * 2**20), ["torn"]),
        (says(layout=2, path_template=None, news=1), ["layout 2", "knows 1", "the version"]),
        (says(path_template="{patient}/{image_id}.v{version}"), ["path_template", "{patient}"]),
        (says(path_template="{patient_id}/{image_id}"), ["path_template", "keeps names apart"]),
        (instead(os.mkfifo), ["no regular file"]),
        (instead(Path.mkdir), ["no regular file"]),
        (instead(link), ["no regular file"]),
    ],
    ids=[
        "torn", "empty", "huge", "another layout", "no such field", "not unique",
        "a pipe", "a directory", "a link",
    ],
)  # fmt: skip
def test_an_archive_that_does_not_say_whose_it_is(
    ours: Account, command: str, damage: Damage, words: list[str]
) -> None:
    damage(ours.archive / ".bulkfetch" / "archive.json")
    before = everything(ours.archive.parent)
    result = run(command, ours, ours.archive)
    said(result, (1 if command == "doctor" else 2, *words))
    assert "another directory" in result.err
    assert everything(ours.archive.parent) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_in_place_of_what_lies_beside_the_images_is_not_followed(
    ours: Account, command: str
) -> None:
    instead(link)(ours.archive / ".bulkfetch")
    before = everything(ours.archive.parent)
    result = run(command, ours, ours.archive)
    assert result.status != 0
    assert "link" in result.err
    assert everything(ours.archive.parent) == before


def test_an_archive_json_that_was_moved_away_is_written_anew(ours: Account) -> None:
    path = ours.archive / ".bulkfetch" / "archive.json"
    whole = path.read_bytes()
    path.unlink()
    result = run("download", ours, ours.archive)
    assert (result.status, result.summary["images"]["downloaded"]) == (0, 0)
    assert path.read_bytes() == whole
    said(run("verify", ours, ours.archive), (0, "nothing is missing"))


def cut_the_journal(archive: Path) -> None:
    """Cut it in the middle of its last line, as no kill does: the run had ended."""
    journal = next(archive.glob(".bulkfetch/runs/*/journal.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-20])


def cut_off_the_run(archive: Path) -> None:
    """Leave what a kill leaves, in the middle of a line about an image."""
    journal = next(archive.glob(".bulkfetch/runs/*/journal.jsonl"))
    text = journal.read_bytes()
    journal.write_bytes(text[: text.index(b'"image"', len(text) // 2) + 20])
    journal.with_name("summary.json").unlink()


def merge(account: Account, archive: Path) -> None:
    """Copy an account's archive into another one by hand, over nothing that is there."""
    # Some versions of cp call what they left out a failure.
    subprocess.run(["cp", "-rn", f"{account.archive}/.", archive], check=False)


@pytest.fixture(scope="module")
def twin(accounts: list[Account], tmp_path_factory: pytest.TempPathFactory) -> Account:
    """The first account, with another archive of what it has."""
    account = accounts[0]._replace(archive=tmp_path_factory.mktemp("twin") / "archive")
    assert run("download", account, account.archive).status == 0
    return account


@pytest.fixture(
    params=[
        "cut at its end",
        "cut in a kill",
        "a pipe for a summary",
        "merged with a twin",
        "merged with a stranger",
    ]
)
def odd(
    request: pytest.FixtureRequest, accounts: list[Account], twin: Account, ours: Account
) -> tuple[Account, str]:
    """An archive whose images are all there, and how it is odd."""
    if request.param == "cut at its end":
        cut_the_journal(ours.archive)
    elif request.param == "cut in a kill":
        cut_off_the_run(ours.archive)
    elif request.param == "a pipe for a summary":
        instead(os.mkfifo)(next(ours.archive.glob(".bulkfetch/runs/*/summary.json")))
    else:
        merge(twin if request.param == "merged with a twin" else accounts[1], ours.archive)
    return ours, request.param


ANSWERS: Mapping[str, Answers] = {
    "cut at its end": {
        "verify": (1, "journal.jsonl:", "it is no event", "judged by their sidecars"),
        "bag": (1, "does not verify", "journal"),
        "status": (0, "ended"),
    },
    "cut in a kill": {
        "verify": (0, "nothing is missing, changed or stray"),
        "bag": (0, "each read once and verified"),
        "status": (1, "was killed", "run the same command again"),
    },
    "a pipe for a summary": {
        "verify": (1, "stray", "summary.json: bulkfetch makes nothing like it here"),
        "bag": (1, "does not verify", "stray"),
        "status": (1, "summary.json: it is no file"),
    },
    "merged with a twin": {
        "verify": (0, "runs: 2", "nothing is missing, changed or stray"),
        "bag": (0, "each read once and verified"),
        "status": (0, "ended"),
    },
    "merged with a stranger": {
        "verify": (1, "foreign", "another organization", "archive of its own account"),
        "bag": (1, "does not verify", "foreign"),
        "status": (0, "ended"),
    },
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_archive_that_somebody_laid_hands_on(odd: tuple[Account, str], command: str) -> None:
    account, how = odd
    answers = {"download": (0, "complete"), "doctor": (0, "organization-1"), **ANSWERS[how]}
    said(run(command, account, account.archive), answers[command])


def test_the_next_run_fetches_nothing_of_it_anew_and_touches_none_of_it(
    odd: tuple[Account, str],
) -> None:
    account, _ = odd
    before = everything(account.archive)
    held = sidecars(account.archive)
    result = run("download", account, account.archive)
    assert result.status == 0, result.err
    images = result.summary["images"]
    assert images["listed"] == images["unchanged"] + images["not_uploaded"] > 0
    assert sidecars(account.archive) == held
    after = everything(account.archive)
    kept = [
        path
        for path in before
        if path.is_file() and (".bulkfetch" not in path.parts or path.suffix == ".jsonl")
    ]
    assert len(kept) > len(held)
    assert [after[path] for path in kept] == [before[path] for path in kept]


def test_each_sidecar_of_a_stranger_is_foreign_until_it_and_its_runs_are_moved_away(
    accounts: list[Account], ours: Account
) -> None:
    stranger = accounts[1]
    merge(stranger, ours.archive)
    result = bulkfetch("verify", ours.archive, "--json")
    *lines, report = map(json.loads, result.out.splitlines())
    foreign = {
        str(path.relative_to(stranger.archive)) for path in stranger.archive.glob("[!.]*/*.json")
    }
    assert {(line["finding"]["kind"], line["finding"]["path"]) for line in lines} == {
        ("foreign", path) for path in foreign
    }
    assert report["report"]["findings"] == {"foreign": len(foreign)}
    elsewhere = ours.archive.with_name("elsewhere")
    for place in (*stranger.archive.glob("[!.]*"), *stranger.archive.glob(".bulkfetch/runs/*")):
        path = place.relative_to(stranger.archive)
        (elsewhere / path).parent.mkdir(parents=True, exist_ok=True)
        (ours.archive / path).rename(elsewhere / path)
    said(run("verify", ours, ours.archive), (0, "nothing is missing"))
