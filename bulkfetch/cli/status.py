"""`bulkfetch status`: how far the run in progress is, or how the last one ended."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from bulkfetch.cli import running
from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.logs import plain, redact
from bulkfetch.models import PatientSums
from bulkfetch.progress import size_text, time_text
from bulkfetch.status import RunStatus, State, Status, look
from bulkfetch.words import counted

_EVERY_S = 2.0
_LABEL_WIDTH = 11
_MOST_MISSING = 10


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "status",
        "Tell how far the run in progress is, from another terminal, or how the last one ended.\n"
        "Of the shards of a manifest it tells the last run of each, and their sums.\n"
        "It only reads. Status 0: the last run ended with 0, or one is at work; 1: it did not,\n"
        "was killed, is not heard of, or there is none; 2: no archive is there.",
        [
            "bulkfetch status archive",
            "bulkfetch status archive --watch",
            "bulkfetch status archive --json | jq .patients",
        ],
        arguments="DEST",
    )
    parser.add_argument("out", metavar="DEST", help="the archive")
    parser.add_argument(
        "--watch", nargs="?", type=_seconds, const=_EVERY_S, metavar="SECONDS",
        help=f"tell it anew every so often until no run is at work [{_EVERY_S:g}]",
    )  # fmt: skip
    parser.add_argument(
        "--json",
        action="store_true",
        help="a line for a program, on standard output, instead of words; with --watch many",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Tell how far a run is, or how the last one ended."""
    parser = command_line()
    given = parser.parse_args(argv)
    screen = _Screen()
    try:
        status = look(given.out)
        while given.watch is not None and status.state is State.running:
            if given.json:
                print(status.model_dump_json(), flush=True)
            else:
                screen.show(status)
            time.sleep(given.watch)
            status = look(given.out)
    except KeyboardInterrupt:
        return running.EXIT_STATUS[signal.SIGINT]
    screen.clear()
    if given.json:
        print(status.model_dump_json())
    else:
        _tell(status, given.out)
    return 0 if status.ok else 1


class _Screen:
    """What is drawn over on a terminal; elsewhere a line each time."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._height = 0

    def show(self, status: Status) -> None:
        """Show how far the runs are, in place of what was shown before."""
        if not self._is_terminal:
            running.say(plain(_in_a_line(status)))
            return
        width, height = _terminal_size()
        # One that is wrapped or scrolled away could not be drawn over.
        lines = [line[: width - 1] for line in _lines(status, width)][: height - 1]
        self._draw("".join(f"{line}\n" for line in lines))
        self._height = len(lines)

    def clear(self) -> None:
        """Remove what was shown."""
        if self._height:
            self._draw("")

    def _draw(self, text: str) -> None:
        up = f"\x1b[{self._height}F" if self._height else ""
        sys.stderr.write(f"{up}\x1b[J{text}")
        sys.stderr.flush()


def _terminal_size() -> os.terminal_size:
    with suppress(OSError):
        size = os.get_terminal_size(sys.stderr.fileno())
        # Some terminals do not know theirs.
        if all(size):
            return size
    return shutil.get_terminal_size()


def _tell(status: Status, out: str) -> None:
    whole = status.runs[0] if status.runs and not status.shards else None
    if whole and whole.summary:
        for line in [*_problems(status), _headline(whole)]:
            running.say(line)
        running.show(whole.summary, out)
        return
    for line in _lines(status, _terminal_size().columns):
        running.say(line)
    for one in status.runs:
        if one.summary and one.summary.failures:
            running.say(plain(f"what failed of {one.shard}: {one.summary.failures}"))


def _lines(status: Status, width: int) -> list[str]:
    """Lay out all that is known."""
    lines = _problems(status)
    if not status.runs:
        return [*lines, "no run has begun in this archive"]
    if not status.shards:
        lines.append(_headline(status.runs[0]))
    for label, words in [*_rows(status), *_shard_rows(status)]:
        lines += textwrap.wrap(
            plain(redact(words)),
            max(width - 1, 40),
            initial_indent=f"  {label:<{_LABEL_WIDTH}}",
            subsequent_indent=" " * (_LABEL_WIDTH + 2),
        )
    if any(one.state is State.killed for one in status.runs):
        lines.append("what was finished is whole: run the same command again to go on from there")
    return lines


def _headline(one: RunStatus) -> str:
    if one.state is State.running:
        progress = one.progress
        if progress is None:
            return f"run {one.run_id} has begun, and told nothing yet"
        words = f"is at work for {time_text(progress.seconds)}"
        if not one.ok and one.silent_s is not None:
            words += f", and not heard of for {time_text(one.silent_s)}: is it stopped?"
        return f"run {one.run_id} {words}"
    if one.summary:
        return (
            f"run {one.run_id} ended {_ago(one.summary.finished_at)} "
            f"with exit status {one.summary.exit_code}"
        )
    when = f"; it was last heard of {_ago(one.progress.at)}" if one.progress else ""
    return f"run {one.run_id} was killed{when}"


def _rows(status: Status) -> Iterator[tuple[str, str]]:
    patients, images = status.patients, status.images
    yield "patients", f"{_done(patients)}{_parts(patients.model_dump())}"
    yield "images", f"{images.listed:,} listed{_parts(images.model_dump())}"
    yield "bytes", size_text(status.bytes)
    if status.state is State.running:
        yield from _live_rows(status)
    yield "retries", f"{status.retries:,}"
    if status.failed_by_kind:
        yield "failures", running.kinds_text(status.failed_by_kind)


def _live_rows(status: Status) -> Iterator[tuple[str, str]]:
    rate, flying = status.rate, status.in_flight
    told = [one.progress for one in status.runs if one.state is State.running and one.progress]
    processes = sum(progress.processes for progress in told)
    each_second = f"{rate.patients_per_s:,.1f} patients, {rate.images_per_s:,.1f} images"
    yield "rate", f"{each_second}, {size_text(rate.bytes_per_s)} a second"
    yield "left", _left(status)
    under_way = f"{counted(flying.queries, 'query')}, {counted(flying.downloads, 'download')}"
    yield "in flight", f"{counted(flying.patients, 'patient')}, {under_way}; processes: {processes}"
    for progress in told:
        if progress.hindrance:
            yield "held up", progress.hindrance


def _parts(sums: dict[str, int]) -> str:
    named = {name: n for name, n in sums.items() if n and name not in ("total", "listed")}
    told = (f"{n:,} {name.replace('_', ' ')}" for name, n in named.items() if name != "not_reached")
    return ": " + ", ".join(told) if named.keys() - {"not_reached"} else ""


def _left(status: Status) -> str:
    return "unknown" if status.left_s is None else f"about {time_text(status.left_s)}"


def _shard_rows(status: Status) -> Iterator[tuple[str, str]]:
    if not status.shards:
        return
    for one in status.runs:
        done = f"{_done(one.numbers.patients)}; " if one.numbers else ""
        yield f"{one.shard}", f"{done}{_headline(one)}"
    if missing := status.missing_shards:
        named = ", ".join(missing[:_MOST_MISSING])
        more = " and more" if len(missing) > _MOST_MISSING else ""
        yield "no run of", f"{named}{more}: a part of the manifest, until it is run"


def _done(patients: PatientSums) -> str:
    done = patients.total - patients.not_reached
    share = f" ({100 * done // patients.total}%)" if patients.total else ""
    return f"{done:,} of {patients.total:,}{share}"


def _in_a_line(status: Status) -> str:
    patients = status.patients
    failed = f", {patients.failed:,} failed" if patients.failed else ""
    return (
        f"patients: {_done(patients)}, left: {_left(status)}, "
        f"{counted(status.images.listed, 'image')}, {size_text(status.bytes)}, "
        f"{size_text(status.rate.bytes_per_s)}/s{failed}"
    )


def _problems(status: Status) -> list[str]:
    return [plain(redact(problem)) for problem in status.problems]


def _ago(moment: datetime) -> str:
    return f"{time_text(max(0.0, (datetime.now(UTC) - moment).total_seconds()))} ago"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be seconds from 0.1 to 3600, and DEST before it")
    return seconds
