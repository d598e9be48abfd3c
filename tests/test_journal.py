"""The record of a run: sums that balance, lines that are whole, failures that are a manifest."""

from __future__ import annotations

import asyncio
import csv
import json
import resource
import stat
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkfetch.archive.files import GrowingFile
from bulkfetch.errors import BadBodyError, DestinationError, SignedURLError
from bulkfetch.journal import Appender, Failure, FailuresFile, Journal, Recorder
from bulkfetch.logs import HIDDEN
from bulkfetch.manifest import Manifest
from bulkfetch.models import ImageOutcome, ManifestRow, PatientState
from bulkfetch.tally import Tally

SHORT = Failure([BadBodyError("short")], ["i-1"])
LEAK = "https://storage.googleapis.com/b/o?X-Goog-Signature=abcdef"


@given(
    st.lists(st.sampled_from(list(PatientState)), max_size=30),
    st.lists(st.sampled_from(list(ImageOutcome)), max_size=30),
    st.integers(0, 10),
)
def test_sums_balance_whatever_ended_and_whatever_was_not_reached(
    patients: list[PatientState], images: list[ImageOutcome], more: int
) -> None:
    tally = Tally(len(patients) + more)
    for state in patients:
        tally.patients[state] += 1
    for outcome in images:
        tally.images[outcome] += 1
    tally.listed = len(images)
    patient_sums = tally.patient_sums().model_dump()
    image_sums = tally.image_sums().model_dump()
    assert patient_sums.pop("total") == sum(patient_sums.values()) == len(patients) + more
    assert image_sums.pop("listed") == sum(image_sums.values()) == len(images)
    assert patient_sums["not_reached"] == patients.count(PatientState.not_reached) + more
    assert tally.patient_sums() == tally.patient_sums()


def row(**fields: Any) -> ManifestRow:
    return ManifestRow(**{"line": 2, "patient_id": "p-1", **fields})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n") if line]


def test_every_event_is_one_line_of_utf_8_json_with_its_time(tmp_path: Path) -> None:
    journal = Journal(GrowingFile(tmp_path / "journal.jsonl"))
    nasty = 'a "quoted"\nline \u2028 é 😀 \ud83d \0'
    journal.event("image", image_id=nasty, version=1, outcome=ImageOutcome.failed, error=None)
    journal.event("patient", patient_id="p", state=PatientState.failed, images=0)
    journal.close(durable=True)
    first, second = lines(tmp_path / "journal.jsonl")
    assert first["image_id"] == nasty
    assert (first["event"], first["version"], first["outcome"]) == ("image", 1, "failed")
    assert "error" not in first
    assert second["images"] == 0
    assert datetime.fromisoformat(first["at"]).tzinfo is not None
    assert first["at"].endswith("Z")


def test_an_error_is_written_without_its_secret(tmp_path: Path) -> None:
    error = SignedURLError(f"refused {LEAK} with Bearer eyJhbGci.eyJzdWIi.c2ln")
    journal = Journal(GrowingFile(tmp_path / "journal.jsonl"))
    failure = Recorder(Tally(1), journal).patient(row(), [], {}, error, reached=False)
    journal.close(durable=False)
    failures = FailuresFile(GrowingFile(tmp_path / "failures.csv"), [])
    assert failure is not None
    failures.note(row(), failure)
    failures.close(durable=False)
    for name in ("journal.jsonl", "failures.csv"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert HIDDEN in text
        assert "abcdef" not in text
        assert "eyJ" not in text
    (told,) = lines(tmp_path / "journal.jsonl")
    assert (told["kind"], told["state"]) == ("signed_url", "failed")


def test_files_are_private_and_there_only_when_there_is_something_in_them(tmp_path: Path) -> None:
    journal = Journal(GrowingFile(tmp_path / "journal.jsonl"))
    journal.close(durable=True)
    assert list(tmp_path.iterdir()) == []
    journal.event("run_started")
    journal.close(durable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]
    failures = FailuresFile(GrowingFile(tmp_path / "failures.csv"), [])
    failures.note(row(), SHORT)
    failures.close(durable=True)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


AWKWARD = [
    "",
    " ",
    "a\rb",
    "a\r\nb",
    "\r",
    "\n",
    ",",
    '"',
    '""',
    "'",
    ";",
    "=1+1",
    "#",
    "\ufeff",
    "\t",
]
cells = st.sampled_from(AWKWARD) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=8
)
ids = st.text("abc019-_é ,\"'#;=", min_size=1, max_size=8).filter(lambda text: text.strip(" "))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(ids.map(lambda text: text.strip(" ")), cells, cells),
        min_size=1,
        max_size=5,
        unique_by=lambda row: row[0],
    )
)
def test_failures_are_a_manifest_with_the_rows_own_columns(
    failed: Sequence[tuple[str, str, str]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        failures = FailuresFile(GrowingFile(Path(name) / "failures.csv"), ["note", "chart, no."])
        for patient_id, note, chart in failed:
            extra = {"note": note, "chart, no.": chart}
            failures.note(row(patient_id=patient_id, extra=extra), SHORT)
        failures.close(durable=False)
        with Manifest(Path(name) / "failures.csv") as manifest:
            manifest.check()
            again = list(manifest.rows())
    assert [found.patient_id for found in again] == [patient_id for patient_id, _, _ in failed]
    for found, (_, note, chart) in zip(again, failed, strict=True):
        assert found.extra == {"note": note, "chart, no.": chart}
        assert found.coverage_id is None


def test_failures_say_what_went_wrong_in_columns_of_their_own(tmp_path: Path) -> None:
    failures = FailuresFile(GrowingFile(tmp_path / "failures.csv"), ["note"])
    failures.note(
        row(patient_id=None, coverage_id="c-1", extra={"note": {"a": [1, None]}}),
        Failure([BadBodyError("the body is empty"), BadBodyError("short")], ["i-1", "i-2"]),
    )
    failures.note(row(), SHORT)
    failures.close(durable=False)
    with (tmp_path / "failures.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "patient_id": "", "coverage_id": "c-1", "note": '{"a": [1, null]}',
        "bulkfetch_kind": "bad_body", "bulkfetch_error": "the body is empty",
        "bulkfetch_images": "i-1 i-2",
    }  # fmt: skip
    assert (second["patient_id"], second["note"]) == ("p-1", "")


async def test_adding_never_writes_and_draining_writes_once_there_is_much(tmp_path: Path) -> None:
    appender = Appender(GrowingFile(tmp_path / "lines"))
    appender.add("one\n")
    await appender.drain()
    assert list(_inside(tmp_path)) == []
    appender.add("x" * 2**16 + "\n")
    await appender.drain()
    assert _inside(tmp_path)["lines"] == "one\n" + "x" * 2**16 + "\n"


def _inside(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir()}


async def test_lines_keep_their_order_when_many_flush_at_once(tmp_path: Path) -> None:
    appender = Appender(GrowingFile(tmp_path / "lines"))

    async def write(number: int) -> None:
        appender.add(f"{number}\n")
        await appender.flush()

    await asyncio.gather(*(write(number) for number in range(200)))
    appender.close(durable=False)
    assert _inside(tmp_path)["lines"].split() == [str(number) for number in range(200)]


async def test_a_flush_that_is_cancelled_loses_no_line_and_is_not_overtaken(
    tmp_path: Path,
) -> None:
    for turn in range(30):
        appender = Appender(GrowingFile(tmp_path / str(turn)))
        wanted = []
        for number in range(5):
            appender.add(f"{number}\n")
            wanted.append(str(number))
            flushing = asyncio.create_task(appender.flush())
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            flushing.cancel()
            await asyncio.gather(flushing, return_exceptions=True)
        appender.add("last\n")
        appender.close(durable=False)
        assert _inside(tmp_path)[str(turn)].split() == [*wanted, "last"]


async def test_what_cannot_be_written_is_a_destination_error(tmp_path: Path) -> None:
    journal = Journal(GrowingFile(tmp_path / "not there" / "journal.jsonl"))
    journal.event("run_started")
    with pytest.raises(DestinationError, match="not there"):
        await journal.flush()
    journal.event("run_finished")
    with pytest.raises(DestinationError):
        journal.close(durable=True)


async def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    appender = Appender(GrowingFile(tmp_path / "lines"))
    whole = "".join(f"{number:05}\n" for number in range(200))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The signal that comes with it is ignored by Python.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        appender.add(whole)
        with pytest.raises(DestinationError):
            await appender.flush()
        appender.add("more\n")
        with pytest.raises(DestinationError):
            appender.close(durable=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    appender.add("last\n")
    appender.close(durable=True)
    assert _inside(tmp_path)["lines"] == f"{whole}more\nlast\n"
