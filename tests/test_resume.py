"""Large bodies that break off, and what the next try or the next run makes of their parts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bulkfetch.simulator import RequestRecord, Simulator, parse_fault
from tests.conftest import (
    Serve,
    credentials,
    download,
    sidecars,
    start_bulkfetch,
    write_manifest,
)
from tests.faulty import (
    Step,
    asked,
    balance,
    in_turn,
    intact,
    move,
    patient_of,
    uploaded,
    whole,
)

SIZE = 4 * 2**20
# The first byte that a part may be continued from: a smaller one is not kept.
SMALLEST = 2**20


def one_large(
    monkeypatch: pytest.MonkeyPatch, simulator: Simulator, tmp_path: Path, *steps: Step
) -> tuple[str, int]:
    """Make a manifest of one patient, and let faults strike the first image of it in turn."""
    victim = uploaded(simulator)[0]
    in_turn(monkeypatch, simulator, "storage", victim[0], *steps)
    write_manifest(tmp_path / "patients.csv", [patient_of(simulator, victim[0])])
    return victim


def starts(requests: list[RequestRecord]) -> list[int | None]:
    """From where each request asked on; None for the whole."""
    found: list[int | None] = []
    for request in requests:
        if request.range is None:
            assert request.if_range is None
            found.append(None)
            continue
        assert request.range.startswith("bytes=")
        assert request.range.endswith("-")
        assert request.if_range is not None
        assert request.if_range.startswith('"')
        found.append(int(request.range[len("bytes=") : -1]))
    return found


@pytest.mark.parametrize("fault", ["short", "stall=30", "drop=3500000"])
def test_a_large_body_that_breaks_off_is_continued_from_where_it_was(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    simulator = serve(patients=2, fixed_bytes=SIZE)
    victim = one_large(monkeypatch, simulator, tmp_path, fault)
    archive = tmp_path / "archive"
    result = download(simulator, tmp_path / "patients.csv", archive, "--timeout=2")
    assert result.status == 0, result.err
    intact(simulator, archive, complete=False)
    requests = asked(simulator, "storage", victim[0])
    if fault.startswith("drop") and starts(requests) == [None, None]:
        # A reset takes with it what the client had not read yet, now and then all of it.
        return
    assert [request.status for request in requests] == [200, 206]
    first, second = starts(requests)
    assert first is None
    assert second is not None
    assert SMALLEST <= second < SIZE


@pytest.mark.parametrize(
    ("steps", "statuses", "ranged"),
    [
        pytest.param(["short", "503"], [200, 503, 206], [0, 1, 1], id="503 in between"),
        pytest.param(["short", "expired"], [200, 400, 206], [0, 1, 1], id="expired in between"),
        pytest.param(["short", "drop"], [200, 0, 206], [0, 1, 1], id="no answer in between"),
        pytest.param(["short", "short"], [200, 206, 206], [0, 1, 1], id="short again"),
        pytest.param(["short", "range-ignored"], [200, 200], [0, 1], id="200 to a range"),
        pytest.param(["short", "etag-changes"], [200, 200], [0, 1], id="another object"),
        pytest.param(["short", "range-wrong"], [200, 206, 200], [0, 1, 0], id="wrong range"),
        pytest.param(["short", "416"], [200, 416, 200], [0, 1, 0], id="416"),
        pytest.param(["short", "412"], [200, 412, 200], [0, 1, 0], id="412"),
        pytest.param(["short", "corrupt"], [200, 206, 200], [0, 1, 0], id="damaged rest"),
        pytest.param(["no-hash", ""], [200], [0], id="no digest, whole"),
        pytest.param(["gzip"], [200], [0], id="gzip, whole"),
    ],
)  # fmt: skip
def test_a_part_is_continued_by_the_rest_of_the_same_object_and_by_nothing_else(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    steps: list[str],
    statuses: list[int],
    ranged: list[int],
) -> None:
    simulator = serve(patients=2, fixed_bytes=SIZE)
    victim = one_large(monkeypatch, simulator, tmp_path, *steps)
    archive = tmp_path / "archive"
    result = download(simulator, tmp_path / "patients.csv", archive)
    assert result.status == 0, result.err
    intact(simulator, archive, complete=False)
    assert victim in sidecars(archive)
    requests = asked(simulator, "storage", victim[0])
    assert [request.status for request in requests] == statuses
    assert [int(start is not None) for start in starts(requests)] == ranged
    if "expired" in steps:
        assert len(asked(simulator, "image", victim[0])) == 1


@pytest.mark.parametrize("faults", ["no-hash", "gzip", "chunked"])
def test_a_part_that_could_not_be_proved_is_not_continued(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: str
) -> None:
    simulator = serve(patients=2, fixed_bytes=SIZE)
    victim = uploaded(simulator)[0]
    left = [[f"storage:{faults}", "storage:short"]]
    monkeypatch.setattr(
        simulator.faults,
        "strike",
        lambda target, resource: (
            [parse_fault(text) for text in left.pop()]
            if left and target == "storage" and victim[0] in resource
            else []
        ),
    )
    write_manifest(tmp_path / "patients.csv", [patient_of(simulator, victim[0])])
    result = download(simulator, tmp_path / "patients.csv", tmp_path / "archive")
    assert result.status == 0, result.err
    intact(simulator, tmp_path / "archive", complete=False)
    assert starts(asked(simulator, "storage", victim[0])) == [None, None]


def test_a_part_of_a_version_that_is_no_more_is_never_continued(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2, fixed_bytes=SIZE)
    victim = uploaded(simulator)[0]

    def moved() -> str:
        move(simulator, victim[0])
        return "expired"

    one_large(monkeypatch, simulator, tmp_path, "short", moved)
    archive = tmp_path / "archive"
    result = download(simulator, tmp_path / "patients.csv", archive)
    assert result.status == 0, result.err
    assert whole(archive)
    sidecar = sidecars(archive)[victim[0], victim[1] + 1]
    data = (sidecar["_path"].parent / sidecar["file"]["path"]).read_bytes()
    assert data == simulator.stored_bytes(victim[0], victim[1] + 1)
    assert starts(asked(simulator, "storage", victim[0]))[-1] is None


def test_a_part_outlives_the_run_that_gave_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2, fixed_bytes=SIZE)
    victim = one_large(monkeypatch, simulator, tmp_path, "short")
    archive = tmp_path / "archive"
    first = download(simulator, tmp_path / "patients.csv", archive, "--retries=0")
    assert first.status == 1
    balance(first.summary)
    assert victim not in sidecars(archive)
    (part,) = archive.glob("*/.*.part")
    size = part.stat().st_size
    second = download(simulator, tmp_path / "patients.csv", archive)
    assert second.status == 0, second.err
    intact(simulator, archive, complete=False)
    assert starts(asked(simulator, "storage", victim[0])) == [None, size]
    assert asked(simulator, "storage", victim[0])[-1].status == 206


def test_a_part_outlives_a_killed_run_and_a_torn_one_costs_only_time(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2, fixed_bytes=SIZE)
    victim = one_large(monkeypatch, simulator, tmp_path, "stall=60", "", "stall=60")
    archive = tmp_path / "archive"
    for torn in (False, True):
        size = kill_with_a_part(simulator, tmp_path / "patients.csv", archive)
        if torn:
            (part,) = archive.glob("*/.*.part")
            # What a power cut may leave: the length without the bytes.
            part.write_bytes(bytes(size))
        again = download(simulator, tmp_path / "patients.csv", archive)
        assert again.status == 0, again.err
        intact(simulator, archive, complete=False)
        requests = asked(simulator, "storage", victim[0])
        expected = [None, size, None] if torn else [None, size]
        assert starts(requests) == expected
        simulator.log.clear()
        for path in archive.glob(f"*/{victim[0]}*"):
            path.unlink()


def kill_with_a_part(simulator: Simulator, manifest: Path, archive: Path) -> int:
    """Start a run, kill it once a part is on disk, and return the part's size."""
    with start_bulkfetch(
        ["download", manifest, "--out", archive], credentials(simulator)
    ) as process:
        deadline = time.monotonic() + 120
        size = last = 0
        while size < SMALLEST or size != last:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
            last, size = size, sum(path.stat().st_size for path in archive.glob("*/.*.part"))
        process.kill()
    whole(archive)
    return size
