"""`bulkfetch manifest build`: who is in a manifest, whatever happens while it is made."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bulkfetch.building import build_manifest, scan
from bulkfetch.manifest import Manifest
from bulkfetch.models import PatientPage, Versioned
from bulkfetch.settings import Building
from bulkfetch.simulator import Fault, Simulator, parse_fault
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    start_bulkfetch,
    with_mounts_of_its_own,
)
from tests.faulty import in_turn


def build(simulator: Simulator, *arguments: str | Path, within: list[str] | None = None) -> Result:
    """Run the command against a simulator."""
    return bulkfetch(
        "manifest", "build", *arguments, environment=credentials(simulator), within=within or ()
    )


def night(simulator: Simulator, tmp_path: Path, *options: str) -> Result:
    """Run what is run each night, the first of the two commands."""
    return build(
        simulator, tmp_path / "nightly.csv", "--since-last", "--out", tmp_path / "archive", *options
    )


def fetch(simulator: Simulator, tmp_path: Path) -> Result:
    """Run the second of them."""
    return download(
        simulator, tmp_path / "nightly.csv", tmp_path / "archive", "--allow-empty", "--retries=0"
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def patients(path: Path) -> list[str]:
    """The patients of a manifest, each of which is in it once."""
    found = [row["patient_id"] for row in rows(path) if row["patient_id"]]
    assert len(found) == len(set(found))
    return found


def coverages(path: Path) -> list[str]:
    found = [row["coverage_id"] for row in rows(path) if row["coverage_id"]]
    assert len(found) == len(set(found))
    return found


def active(simulator: Simulator) -> set[str]:
    population = simulator._population
    records = (population.patient(index) for index in range(population.size))
    return {record.id for record in records if not record.deactivated}


def leavings(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("."))


# A page of the listing has 1,000, and its places go to 10,000 at most.
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("all.csv", 10_500), ("all.tsv.gz", 500), ("all.txt", 500), ("all.jsonl", 500),
        ("all.parquet", 500),
    ],
)  # fmt: skip
def test_all_active_patients_are_listed_in_every_form(
    serve: Serve, tmp_path: Path, name: str, number: int
) -> None:
    simulator = serve(patients=number)
    path = tmp_path / name
    result = build(simulator, path, "--json")
    assert result.status == 0, result.err
    with Manifest(path) as manifest:
        facts = manifest.check()
        found = [row.patient_id for row in manifest.rows()]
    assert set(found) == active(simulator)
    assert len(found) == facts.rows == json.loads(result.out)["patients"]
    # What a run ignores: none of it is in a sidecar.
    assert facts.columns == ()
    assert path.stat().st_mode & 0o777 == 0o600
    assert leavings(tmp_path) == []
    assert f"{len(found):,} patients" in result.err
    again = path.read_bytes()
    assert build(simulator, path).status == 0
    assert path.read_bytes() == again


def test_a_scan_has_the_deactivated_ones_too_unless_told_otherwise(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=2_100)
    path = tmp_path / "all.csv"
    result = build(simulator, path, "--since", "2020-01-01", "--json")
    assert result.status == 0, result.err
    assert patients(path) == list(simulator.patient_ids())
    times = [row["bulkfetch_updated_at"] for row in rows(path)]
    assert times == sorted(times)
    answer = json.loads(result.out)
    assert (answer["first_updated_at"], answer["last_updated_at"]) == (times[0], times[-1])
    middle = times[1_000]
    assert build(simulator, path, "--since", middle).status == 0
    assert patients(path) == [
        p for p, at in zip(simulator.patient_ids(), times, strict=True) if at >= middle
    ]
    assert build(simulator, path, "--since", "2020-01-01", "--active-only").status == 0
    assert set(patients(path)) == active(simulator)


@pytest.mark.parametrize("size", [1, 100, 999])
def test_patients_that_share_a_time_are_all_found(serve: Serve, tmp_path: Path, size: int) -> None:
    simulator = serve(patients=10_000 if size > 1 else 2_500, patients_per_instant=size)
    path = tmp_path / "all.csv"
    result = build(simulator, path, "--since", "2020-01-01")
    assert result.status == 0, result.err
    assert patients(path) == list(simulator.patient_ids())


@pytest.mark.parametrize("size", [1000, 1001, 2500])
def test_more_patients_of_one_time_than_a_page_holds_are_a_loud_error_and_never_a_gap(
    serve: Serve, tmp_path: Path, size: int
) -> None:
    simulator = serve(patients=3_000, patients_per_instant=size)
    path = tmp_path / "all.csv"
    path.write_text("patient_id\nthe one of last night\n")
    result = build(simulator, path, "--since", "2020-01-01")
    assert result.status == 1
    assert "1,000 or more patients of one time (2023-" in result.err
    assert "without --since and --since-last" in result.err
    assert "Traceback" not in result.err
    assert "last night" in path.read_text()
    # What the message advises:
    assert build(simulator, path).status == 0
    assert set(patients(path)) == active(simulator)


async def test_a_scan_that_goes_back_in_time_is_an_error() -> None:
    pages = iter([["2024-01-02T00:00:00.001Z"], ["2024-01-01T00:00:00.000Z"]])

    async def ask(_since: str) -> list[Any]:
        return [Versioned(id=at, version=1, updated_at=at) for at in next(pages)]

    with pytest.raises(Exception, match="did not answer in order of time"):
        async for _ in scan.scanned(ask, "2024-01-01T12:00:00Z", 1000, "patients"):
            pass


def test_patients_that_change_while_the_scan_runs_are_in_it_once(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=5_000)
    ids = list(simulator.patient_ids())
    during(monkeypatch, simulator, lambda turn: simulator.touch_patient(ids[turn * 3]))
    path = tmp_path / "all.csv"
    result = build(simulator, path, "--since", "2020-01-01")
    assert result.status == 0, result.err
    assert sorted(patients(path)) == sorted(ids)


def test_an_account_that_never_rests_does_not_keep_a_scan_from_ending(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=50)
    ids = list(simulator.patient_ids())
    began = time.time()
    during(
        monkeypatch, simulator,
        lambda turn: simulator.touch_patient(ids[turn % 50], at=began - 10_000 + turn),
    )  # fmt: skip
    result = build(simulator, tmp_path / "all.csv", "--since", "2020-01-01")
    assert result.status == 0, result.err
    assert sorted(patients(tmp_path / "all.csv")) == sorted(ids)
    assert simulator.requests["patients_scan"] <= scan.SHORT_PAGES_AT_MOST + 1


def test_a_patient_that_moved_out_of_sight_while_they_were_listed_is_found_the_second_time(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=3_000)
    skip_one_on_page(monkeypatch, simulator, times=1)
    result = build(simulator, tmp_path / "all.csv")
    assert result.status == 0, result.err
    assert "counts 1 patient more than it listed" in result.err
    assert set(patients(tmp_path / "all.csv")) == active(simulator)


def test_a_listing_that_never_adds_up_is_written_and_is_status_1(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=3_000)
    skip_one_on_page(monkeypatch, simulator, times=99)
    result = build(simulator, tmp_path / "all.csv", "--json")
    assert result.status == 1
    assert "may lack them" in result.err
    assert json.loads(result.out)["missing"] == 1
    assert len(patients(tmp_path / "all.csv")) == len(active(simulator)) - 1


async def test_a_listing_that_goes_round_in_a_circle_is_an_error() -> None:
    async def ask(token: str | None) -> Any:
        following = {None: "a", "a": "b", "b": "c", "c": "a"}[token]
        return PatientPage(items=[], next_page_token=following, total=9)

    with pytest.raises(Exception, match="round in a circle"):
        async for _ in scan.listed(ask, None):
            pass


@pytest.mark.parametrize("fault", ["503", "429=0", "drop", "truncated-json", "bad-json", "html"])
@pytest.mark.parametrize("options", [(), ("--since", "2020-01-01", "--coverages")])
def test_a_fault_on_every_page_costs_nobody(
    serve: Serve, tmp_path: Path, fault: str, options: tuple[str, ...]
) -> None:
    faults = tuple(parse_fault(f"{target}:{fault}x1") for target in ("patients", "coverages"))
    simulator = serve(patients=60, faults=faults)
    result = build(simulator, tmp_path / "all.csv", *options, "--query-concurrency=2")
    assert result.status == 0, result.err
    wanted = set(simulator.patient_ids()) if options else active(simulator)
    assert set(patients(tmp_path / "all.csv")) == wanted
    assert simulator.faults.hits


def test_a_token_that_dies_in_the_middle_is_renewed(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2_500)
    in_turn(monkeypatch, simulator, "patients", "scan", "", "token-death", "", "token-death")
    result = build(simulator, tmp_path / "all.csv", "--since", "2020-01-01")
    assert result.status == 0, result.err
    assert patients(tmp_path / "all.csv") == list(simulator.patient_ids())
    assert simulator.requests["token"] == 3


@pytest.mark.parametrize(("fault", "word"), [("403", "may these credentials"), ("wrong-shape", "")])
def test_what_stays_wrong_is_told_and_leaves_the_manifest_of_before(
    serve: Serve, tmp_path: Path, fault: str, word: str
) -> None:
    simulator = serve(faults=(parse_fault(f"patients:{fault}"),))
    path = tmp_path / "all.csv"
    path.write_text("before")
    result = build(simulator, path)
    assert result.status == 1
    assert word in result.err
    assert "Traceback" not in result.err
    assert path.read_text() == "before"


def test_coverages_have_rows_of_their_own_and_a_changed_one_is_not_missed(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=400)
    path = tmp_path / "nightly.csv"
    result = night(simulator, tmp_path, "--coverages")
    assert result.status == 0, result.err
    assert set(coverages(path)) == set(simulator.coverage_ids())
    assert set(patients(path)) == set(simulator.patient_ids())
    assert not any(row["patient_id"] and row["coverage_id"] for row in rows(path))
    assert simulator.peak_in_flight["coverages"] <= 16
    assert fetch(simulator, tmp_path).status == 0
    changed = next(iter(simulator.coverage_ids()))
    simulator.touch_coverage(changed)
    assert night(simulator, tmp_path, "--coverages").status == 0
    assert (patients(path), coverages(path)) == ([], [changed])
    owner = next(p for p in simulator.patient_ids() if len(list(simulator.coverage_ids(p))) > 1)
    simulator.touch_patient(owner)
    assert fetch(simulator, tmp_path).status == 0
    assert night(simulator, tmp_path, "--coverages").status == 0
    assert (patients(path), coverages(path)) == ([owner], list(simulator.coverage_ids(owner)))


def test_a_hundred_coverages_of_one_time_are_a_loud_error(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=300)
    for coverage in list(simulator.coverage_ids())[:100]:
        simulator.touch_coverage(coverage, at=1_760_000_000)
    result = build(simulator, tmp_path / "c.csv", "--since", "2025-09-01", "--coverages")
    assert result.status == 1
    assert "100 or more coverages of one time" in result.err


def test_nights_follow_each_other_and_a_quiet_one_is_empty(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=300)
    ids = list(simulator.patient_ids())
    path = tmp_path / "nightly.csv"
    wanted = [ids, [], [ids[7], ids[3]], [], [ids[3]], []]
    for changed in wanted:
        if changed != ids:
            for patient in changed:
                simulator.touch_patient(patient)
                time.sleep(0.002)  # the API's own resolution: they do not share a time
        result = night(simulator, tmp_path)
        assert result.status == 0, result.err
        assert patients(path) == changed
        assert ("nobody changed" in result.err) == (not changed)
        assert "no whole run" not in result.err
        done = fetch(simulator, tmp_path)
        assert done.status == 0, done.err
        assert done.summary["patients"]["total"] == len(changed)
    added = simulator.add_patient()
    assert night(simulator, tmp_path).status == 0
    assert patients(path) == [added]


def test_a_night_whose_download_failed_or_never_ran_is_in_the_next_manifest_too(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=60)
    ids = list(simulator.patient_ids())
    path = tmp_path / "nightly.csv"
    assert night(simulator, tmp_path).status == 0
    assert fetch(simulator, tmp_path).status == 0
    simulator.touch_patient(ids[1])
    assert night(simulator, tmp_path).status == 0
    assert patients(path) == [ids[1]]
    # The job dies here: no download.
    simulator.touch_patient(ids[2])
    second = night(simulator, tmp_path)
    assert "no whole run on the manifest before" in second.err
    assert set(patients(path)) == {ids[1], ids[2]}
    simulator.faults.add("images:400")
    assert fetch(simulator, tmp_path).status == 1
    simulator.faults.clear()
    simulator.touch_patient(ids[2])
    # A dry run, and a run of one share alone, are no archive of it.
    dry = download(simulator, path, tmp_path / "archive", "--dry-run")
    half = download(simulator, path, tmp_path / "archive", "--shard=1/2", "--allow-empty")
    assert (dry.status, half.status) == (0, 0)
    assert night(simulator, tmp_path).status == 0
    assert set(patients(path)) == {ids[1], ids[2]}
    for shard in ("1/2", "2/2"):
        options = (f"--shard={shard}", "--allow-empty")
        assert download(simulator, path, tmp_path / "archive", *options).status == 0
    assert night(simulator, tmp_path).status == 0
    assert patients(path) == []


def test_the_same_patient_changed_each_night_is_never_taken_for_fetched(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=10)
    one = next(iter(simulator.patient_ids()))
    assert night(simulator, tmp_path).status == 0
    assert fetch(simulator, tmp_path).status == 0
    simulator.touch_patient(one)
    assert night(simulator, tmp_path).status == 0
    assert fetch(simulator, tmp_path).status == 0
    simulator.touch_patient(one)
    for _ in range(2):  # built twice, never fetched
        assert night(simulator, tmp_path).status == 0
        assert patients(tmp_path / "nightly.csv") == [one]


def test_a_record_that_shows_up_late_with_an_earlier_time_is_not_missed(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=50)
    ids = list(simulator.patient_ids())
    simulator.touch_patient(ids[0])
    assert night(simulator, tmp_path).status == 0
    assert fetch(simulator, tmp_path).status == 0
    simulator.touch_patient(ids[1], at=time.time() - 60)
    assert night(simulator, tmp_path).status == 0
    assert patients(tmp_path / "nightly.csv") == [ids[1]]


def test_a_clock_that_is_an_hour_off_loses_nobody(serve: Serve, tmp_path: Path) -> None:
    # The API's clock is an hour ahead of this machine's, and then an hour behind it.
    for hours, name in ((1, "ahead"), (-1, "behind")):
        simulator = serve(patients=30)
        ids, now = list(simulator.patient_ids()), time.time() + hours * 3600
        place = tmp_path / name
        place.mkdir()
        simulator.touch_patient(ids[0], at=now)
        assert night(simulator, place).status == 0
        assert fetch(simulator, place).status == 0
        simulator.touch_patient(ids[1], at=now + 1)
        assert night(simulator, place).status == 0
        assert patients(place / "nightly.csv") == [ids[1]]


def test_a_time_to_come_is_refused(serve: Serve, tmp_path: Path) -> None:
    result = build(serve(), tmp_path / "m.csv", "--since", "2199-01-01")
    assert result.status == 2
    assert "is to come: correct it, or this machine's clock" in result.err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cursor(serve: Serve, tmp_path: Path) -> tuple[Simulator, Path]:
    """The cursor of a first night, all of which is in the archive."""
    simulator = serve(patients=20)
    assert night(simulator, tmp_path).status == 0
    assert fetch(simulator, tmp_path).status == 0
    assert night(simulator, tmp_path).status == 0
    return simulator, tmp_path / "nightly.csv.cursor.json"


def set_in(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is torn, or no cursor"),
        (lambda path: path.write_bytes(b""), "is torn, or no cursor"),
        (lambda path: path.write_text('{"name": "package"}'), "is torn, or no cursor"),
        (lambda path: path.write_bytes(os.urandom(500)), "is torn, or no cursor"),
        (lambda path: set_in(path, schema_version=2), "is torn, or no cursor"),
        (lambda path: set_in(path, api_host="other.invalid"), "another account, at other.invalid"),
        (
            lambda path: set_in(path, confirmed={"patients": {"updated_at": "2199-01-01"}}),
            "set this machine's clock",
        ),
    ],
)
def test_a_cursor_that_cannot_be_is_refused_and_left_as_it_is(
    cursor: tuple[Simulator, Path], damage: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    simulator, path = cursor
    damage(path)
    before = path.read_bytes(), (tmp_path / "nightly.csv").read_bytes()
    result = night(simulator, tmp_path)
    assert result.status == 2, result.err
    assert words in result.err
    assert "Traceback" not in result.err
    assert before == (path.read_bytes(), (tmp_path / "nightly.csv").read_bytes())


def test_a_cursor_of_another_organization_at_the_same_host_is_refused(
    cursor: tuple[Simulator, Path], tmp_path: Path
) -> None:
    simulator, path = cursor
    set_in(path, organization_id="other")
    simulator.touch_patient(next(iter(simulator.patient_ids())))
    before = path.read_bytes()
    result = night(simulator, tmp_path)
    assert result.status == 2
    assert "and not of other" in result.err
    assert path.read_bytes() == before


def test_without_its_cursor_a_night_begins_at_the_beginning_or_where_it_is_told(
    cursor: tuple[Simulator, Path], tmp_path: Path
) -> None:
    simulator, path = cursor
    ids = list(simulator.patient_ids())
    path.unlink()
    assert night(simulator, tmp_path).status == 0
    assert patients(tmp_path / "nightly.csv") == ids
    path.unlink()
    simulator.touch_patient(ids[4])
    result = night(simulator, tmp_path, "--since", "2025-01-01")
    assert result.status == 0, result.err
    assert patients(tmp_path / "nightly.csv") == [ids[4]]
    # From now on the cursor says where.
    assert fetch(simulator, tmp_path).status == 0
    assert night(simulator, tmp_path, "--since", "2020-01-01").status == 0
    assert patients(tmp_path / "nightly.csv") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("m.csv", "--since-last"),
        ("-", "--since-last", "--out", "archive"),
        ("m.txt", "--coverages"),
        ("m.txt", "--since-last", "--out", "archive"),
        ("m.xls",),
        (".",),
        ("m.csv", "--since", "yesterday"),
        ("-", "--json"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_asked(
    serve: Serve, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    simulator = serve()
    result = bulkfetch(
        "manifest", "build", *arguments, environment=credentials(simulator), cwd=tmp_path
    )
    assert result.status == 2, result.err
    assert result.err.startswith("bulkfetch: ")
    assert "Traceback" not in result.err
    assert not list(tmp_path.iterdir())
    assert not simulator.requests


@pytest.mark.parametrize("options", [(), ("--since", "2020-01-01", "--coverages")])
def test_a_killed_build_goes_on_from_where_it_was_and_misses_nobody(
    serve: Serve, tmp_path: Path, options: tuple[str, ...]
) -> None:
    simulator = serve(patients=12_000 if not options else 3_000, api_latency_s=0.02)
    path = tmp_path / "all.csv"
    arguments: list[str | Path] = [
        "manifest", "build", path, *options, "--query-concurrency=64"
    ]  # fmt: skip
    endpoint = "patients_scan" if options else "patients"
    process = start_bulkfetch(arguments, credentials(simulator))
    deadline = time.monotonic() + 60
    while simulator.requests[endpoint] < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not path.exists()
    assert leavings(tmp_path)[0] == ".all.csv.building"
    before = simulator.requests[endpoint]
    result = build(simulator, path, *options, "--json")
    assert result.status == 0, result.err
    assert "gone on from where an earlier build had ended" in result.err
    wanted = set(simulator.patient_ids()) if options else active(simulator)
    assert set(patients(path)) == wanted
    if options:
        assert set(coverages(path)) == set(simulator.coverage_ids())
    pages = -(-len(wanted) // 1000)
    assert simulator.requests[endpoint] - before < pages + 2
    assert leavings(tmp_path) == []


def test_a_part_that_is_no_database_is_begun_anew(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=2_500)
    path = tmp_path / "all.csv"
    (tmp_path / ".all.csv.building").write_bytes(b"rubbish, and no database at all" * 99)
    result = build(simulator, path, "--since", "2020-01-01", "--json")
    assert result.status == 0, result.err
    assert not json.loads(result.out)["resumed"]
    assert patients(path) == list(simulator.patient_ids())


def test_a_part_of_another_build_is_begun_anew(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2_500)
    path = tmp_path / "all.csv"
    in_turn(monkeypatch, simulator, "patients", "scan", "", "400")
    assert build(simulator, path, "--since", "2020-01-01").status == 1
    assert leavings(tmp_path) == [".all.csv.building"]
    result = build(simulator, path, "--since", "2020-01-01", "--active-only", "--json")
    assert result.status == 0, result.err
    assert not json.loads(result.out)["resumed"]
    assert set(patients(path)) == active(simulator)


def test_a_place_in_the_listing_that_the_api_forgot_is_begun_anew(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2_500)
    path = tmp_path / "all.csv"
    in_turn(monkeypatch, simulator, "patients", "get_multi", "", "400", "400")
    assert build(simulator, path).status == 1
    result = build(simulator, path)
    assert result.status == 0, result.err
    assert "listing anew" in result.err
    assert set(patients(path)) == active(simulator)


def test_a_listing_of_another_day_is_begun_anew(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2_500)
    path = tmp_path / "all.csv"
    in_turn(monkeypatch, simulator, "patients", "get_multi", "", "400")
    assert build(simulator, path).status == 1
    with closing(sqlite3.connect(tmp_path / ".all.csv.building")) as part, part:
        (told,) = part.execute("SELECT text FROM notes WHERE name = 'build'").fetchone()
        yesterday = json.dumps(json.loads(told) | {"day": "2026-01-01"}, sort_keys=True)
        part.execute("UPDATE notes SET text = ? WHERE name = 'build'", (yesterday,))
    result = build(simulator, path, "--json")
    assert result.status == 0, result.err
    assert not json.loads(result.out)["resumed"]
    assert set(patients(path)) == active(simulator)


def test_two_builds_of_one_manifest_do_not_get_in_each_others_way(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=5_000, api_latency_s=0.3)
    path = tmp_path / "all.csv"
    process = start_bulkfetch(["manifest", "build", path], credentials(simulator))
    deadline = time.monotonic() + 60
    while not leavings(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)
    second = build(simulator, path)
    assert second.status == 4
    assert "another build of this manifest is at work" in second.err
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert set(patients(path)) == active(simulator)


def test_ctrl_c_is_status_130_and_the_next_build_goes_on(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=5_000, api_latency_s=0.2)
    path = tmp_path / "all.csv"
    process = start_bulkfetch(["manifest", "build", path], credentials(simulator))
    deadline = time.monotonic() + 60
    while simulator.requests["patients"] < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert "gone on from" in build(simulator, path).err
    assert set(patients(path)) == active(simulator)


def test_a_full_disk_is_status_4_and_leaves_manifest_and_cursor_as_they_were(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=20_000)
    disk = tmp_path / "disk"
    disk.mkdir()
    within = with_mounts_of_its_own(
        f'mount -t tmpfs -o size=600k none "{disk}" && echo before > "{disk}/m.csv"'
        f' && "$@"; status=$?; cat "{disk}/m.csv" >&2; ls "{disk}" >&2; exit $status'
    )
    result = build(
        simulator, disk / "m.csv", "--since-last", "--out", tmp_path / "archive", within=within
    )
    assert result.status == 4, result.err
    assert "full" in result.err or "No space" in result.err
    assert "Traceback" not in result.err
    shown = result.err.splitlines()
    assert "before" in shown
    assert "m.csv.cursor.json" not in shown


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["no where/m.csv"], "MANIFEST"),
        (["m.csv", "--since-last", "--out=archive", "--cursor=no where/c.json"], "--cursor"),
    ],
)
def test_a_directory_that_is_not_there_is_status_4_before_anything_is_asked(
    serve: Serve, tmp_path: Path, arguments: list[str], option: str
) -> None:
    simulator = serve()
    result = bulkfetch(
        "manifest", "build", *arguments, environment=credentials(simulator), cwd=tmp_path
    )
    assert result.status == 4
    assert f"make it (mkdir -p 'no where'), or name another with {option}" in result.err
    assert not simulator.requests
    assert not list(tmp_path.iterdir())


def test_what_is_for_since_last_alone_is_refused_without_it(serve: Serve, tmp_path: Path) -> None:
    simulator, path = serve(), tmp_path / "m.csv"
    options = ("--out", tmp_path / "archive", "--cursor", tmp_path / "c.json")
    result = build(simulator, path, *options, "--since=2026-01-01")
    assert result.status == 2
    assert "--out and --cursor can do nothing without --since-last" in result.err
    assert not simulator.requests
    # In the environment it may be there for the other commands.
    environment = {**credentials(simulator), "BULKFETCH_OUT": str(tmp_path / "archive")}
    assert bulkfetch("manifest", "build", path, environment=environment).status == 0


def test_standard_output_has_the_rows_as_they_come_and_may_be_closed_early(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=10_500)
    result = build(simulator, "-", "--since", "2020-01-01")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("patient_id,")
    assert [line.partition(",")[0] for line in lines[1:]] == list(simulator.patient_ids())
    as_lines = build(simulator, "-", "--manifest-format=jsonl")
    assert {json.loads(line)["patient_id"] for line in as_lines.out.splitlines()} == active(
        simulator
    )
    command = f'"{sys.executable}" -m bulkfetch manifest build - --since 2020-01-01 | head -n 2'
    early = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, check=False, env={**os.environ, **credentials(simulator)},
    )  # fmt: skip
    assert early.returncode == 1
    assert early.stdout.count(b"\n") == 2
    assert b"Traceback" not in early.stderr
    full = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m bulkfetch manifest build - > /dev/full'],
        capture_output=True, check=False, env={**os.environ, **credentials(simulator)},
    )  # fmt: skip
    assert full.returncode == 1
    assert b"cannot write the answer" in full.stderr


def test_a_manifest_of_standard_output_can_be_downloaded_at_once(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=20)
    made = build(simulator, "-")
    result = bulkfetch(
        "download", "-", "--out", tmp_path / "archive", "--json",
        environment=credentials(simulator), stdin=made.out.encode(),
    )  # fmt: skip
    assert result.status == 0, result.err
    assert result.summary["patients"]["total"] == len(active(simulator))


def test_parquet_without_pyarrow_is_said_before_anything_is_asked(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    settings = Building(api_url=simulator.api_url, token="x")
    with pytest.raises(Exception, match=r"pip install 'bulkfetch\[parquet\]'"):
        asyncio.run(build_manifest(str(tmp_path / "m.parquet"), settings))
    assert not simulator.requests
    assert not list(tmp_path.iterdir())


def test_wrong_credentials_are_status_3(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    environment = {**credentials(simulator), "BULKFETCH_CLIENT_SECRET": "wrong"}
    result = bulkfetch("manifest", "build", tmp_path / "m.csv", environment=environment)
    assert result.status == 3
    assert not (tmp_path / "m.csv").exists()


def test_gzip_holds_no_time_so_that_the_same_rows_are_the_same_bytes(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=30)
    for name in ("a.csv.gz", "b.csv.gz"):
        assert build(simulator, tmp_path / name).status == 0
        time.sleep(1.1 if name[0] == "a" else 0)
    one, other = ((tmp_path / name).read_bytes() for name in ("a.csv.gz", "b.csv.gz"))
    assert one == other
    assert gzip.decompress(one).startswith(b"patient_id,")


def during(
    monkeypatch: pytest.MonkeyPatch, simulator: Simulator, change: Callable[[int], object]
) -> None:
    """Have something happen at each page that is asked for, numbered from 0."""
    strike = simulator.faults.strike
    turns = iter(range(10**6))

    def struck(target: str, resource: str) -> list[Fault]:
        if target == "patients":
            change(next(turns))
        return strike(target, resource)

    monkeypatch.setattr(simulator.faults, "strike", struck)


def skip_one_on_page(monkeypatch: pytest.MonkeyPatch, simulator: Simulator, times: int) -> None:
    """Leave the first patient of the second page out, the first so many times."""
    active_in = simulator._api._active
    left = [times]

    def seen(order: range) -> Any:
        found = active_in(order)
        if order.start > 0 and order.start < 1_500 and left[0]:
            left[0] -= 1
            next(found)
        return found

    monkeypatch.setattr(simulator._api, "_active", seen)
