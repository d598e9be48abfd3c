"""What a run shows of itself while it goes on."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkfetch.models import ImageOutcome, PatientState
from bulkfetch.progress import (
    PLAIN_EVERY_S,
    BarProgress,
    PlainProgress,
    ProgressStyle,
    progress_for,
)
from bulkfetch.simulator.faults import parse_fault
from bulkfetch.tally import Tally
from tests.conftest import Serve, bulkfetch, credentials, write_manifest


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def tally(done: int, total: int = 100_000) -> Tally:
    made = Tally(total)
    made.patients[PatientState.complete] = done
    made.images[ImageOutcome.downloaded] = made.listed = 3 * done
    made.bytes = 60_000 * done
    return made


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_rate_and_time_left_are_those_of_the_last_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = PlainProgress(clock)
    for _ in range(100):
        clock.now_s += PLAIN_EVERY_S
        progress.show(tally(10))
    assert said(capsys).endswith("10/100,000 patients, 0.0 images/s, 0 B/s, 30 images, 600 kB\n")
    for turn in range(1, 21):
        clock.now_s += PLAIN_EVERY_S
        progress.show(tally(10 + 500 * turn))
    assert said(capsys).endswith(
        "10,010/100,000 patients, 14:59 left, 300 images/s, 6.00 MB/s, 30,030 images, 601 MB\n"
    )


def test_what_holds_a_run_up_comes_first_and_no_end_is_in_sight_while_a_service_is_left_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = PlainProgress(clock)
    shown = tally(10)
    shown.patients[PatientState.failed] = 2
    shown.measures.retries.update(status=1, timeout=3)
    shown.hindrance, shown.is_paused = "the API is failing: paused for 3 s", True
    clock.now_s += PLAIN_EVERY_S
    progress.show(shown)
    assert said(capsys).startswith(
        "12/100,000 patients, the API is failing: paused for 3 s, 2 failed, 4 retries, 6.0 images/s"
    )


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal_and_no_word_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    size = os.terminal_size((columns, 24))
    monkeypatch.setattr(os, "get_terminal_size", lambda _: size)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (columns, 24))
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2)
    clock = Clock()
    progress = BarProgress(clock)
    for done in (0, 1, 999, 54_321):
        clock.now_s += 1
        shown = tally(done)
        shown.hindrance = "throttled to 4 queries at once" if done == 999 else None
        progress.show(shown)
        lines = lines_of(said(capsys))
        assert max(map(len, lines)) <= columns
        below = [line.strip() for line in lines if "images/s" in line]
        if columns >= 40:
            assert re.search(rf"{done:,}/100,000", "\n".join(lines))
        for word in ", ".join(below).split(", "):
            assert re.fullmatch(
                r"|throttled to 4 queries at once|[\d,.]+ (images/s|[kMG]?B(/s)?|images)", word
            )
    progress.close()


def lines_of(shown: str) -> list[str]:
    return re.split(r"\r|\n|\x1b\[[AJ]", shown)


def drawn(ours: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(ours, 65536).decode("utf-8", "replace")
        except OSError:  # the other end is closed
            return


def test_a_terminal_that_is_made_narrower_is_drawn_anew_to_its_new_width(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=60, storage_latency_s=0.1)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "bulkfetch", "download", manifest, "-o", tmp_path / "archive",
         "--download-concurrency=8", "--log-level=error"],
        stderr=theirs, env={**os.environ, **credentials(simulator), "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = ""
        is_narrow = False
        for part in drawn(ours):
            shown += part
            if not is_narrow and "images/s" in shown:
                fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
                is_narrow = True
    os.close(ours)
    assert process.returncode == 0
    wide, cleared, narrow = shown.partition("\r\x1b[J")
    assert cleared
    narrow, _, table = narrow.partition("patients                  images")
    assert table
    assert 78 < max(map(len, lines_of(wide))) <= 80
    assert 38 < max(map(len, lines_of(narrow))) <= 40
    assert "images/s" in narrow
    # Each turn ends at the beginning of the first line: it stays there when the lines are wrapped.
    assert re.search(r"\x1b\[A\r\r *\d+% ", narrow)


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert type(progress_for(ProgressStyle.auto)) is PlainProgress
    monkeypatch.setenv("TERM", "xterm")
    assert type(progress_for(ProgressStyle.auto)) is BarProgress


def test_every_line_is_json_with_an_event_where_that_is_asked_for(
    serve: Serve, tmp_path: Path
) -> None:
    faults = tuple(map(parse_fault, ("image:404", "storage:404@20%", "images:429=0@20%x1")))
    simulator = serve(patients=70, faults=faults, storage_latency_s=1)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--processes=2",
        "--log-format=json", "--log-level=info",
        environment=credentials(simulator),
    )  # fmt: skip
    assert result.status == 1
    lines = [json.loads(line) for line in result.err.splitlines()]
    by_event: dict[str, list[dict[str, object]]] = {}
    for line in lines:
        by_event.setdefault(line["event"], []).append(line)
    assert {"run_started", "progress", "retrying", "throttled", "image_failed"} < set(by_event)
    assert lines[-1]["event"] == "run_finished"
    assert lines[-1]["exit_code"] == 1
    summary = json.loads(
        next((tmp_path / "archive/.bulkfetch").glob("runs/*/summary.json")).read_bytes()
    )
    for name in ("patients", "images", "bytes", "retries", "failed_by_kind"):
        assert lines[-1][name] == summary[name]
    failed = by_event["image_failed"]
    assert len(failed) == summary["images"]["failed"]
    assert {line["kind"] for line in failed} == {"status"}
    assert {line["is_retryable"] for line in failed} == {False}


def test_what_ends_a_run_is_a_json_line_too(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=2)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--log-format=json",
        environment={**credentials(simulator), "BULKFETCH_CLIENT_SECRET": "wrong"},
    )  # fmt: skip
    assert result.status == 3
    (line,) = map(json.loads, result.err.splitlines())
    assert line["event"] == "run_failed"
    assert line["exit_code"] == 3
    assert "refused the credentials" in line["error"]
