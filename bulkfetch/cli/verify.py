"""`bulkfetch verify`: re-read an archive, and prove it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Never, Self

from tqdm import tqdm

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import say
from bulkfetch.limits import usable_cores
from bulkfetch.logs import plain
from bulkfetch.manifest import Manifest, ManifestFormat
from bulkfetch.models import ManifestRow, label
from bulkfetch.progress import size_text
from bulkfetch.verification import ADVICE, Finding, Kind, LastWord, Report, is_at_work, verify
from bulkfetch.words import counted, filters_text

# A person reads so many; who wants more has a program for it.
_TOLD_OF_A_KIND = 20


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "verify",
        "Re-read an archive and prove it: every sidecar against its file, the journals against\n"
        "the sidecars, and nothing missing, changed or stray. Writes nothing, uses no network.",
        [
            "bulkfetch verify archive",
            "bulkfetch verify archive --sample 5%",
            "bulkfetch verify archive --manifest patients.csv --json > findings.jsonl",
        ],
        arguments="DEST",
    )
    parser.add_argument("out", metavar="DEST", help="the archive")
    parser.add_argument(
        "--sample", type=_percent, metavar="P%",
        help="hash so many of the files only; presence and size of all are checked [100%%]",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="WORD", help="which files a sample has: the same word, the same files"
    )
    parser.add_argument(
        "--manifest", metavar="FILE", help="say of each of its rows what became of it"
    )
    parser.add_argument(
        "--manifest-format", choices=list(ManifestFormat), type=ManifestFormat, metavar="FORM",
        help=f"where the ending does not tell: {', '.join(ManifestFormat)}",
    )  # fmt: skip
    parser.add_argument(
        "--head", action="append", default=[], type=_digest, metavar="DIGEST",
        help="of a run, as it told it and as you kept it elsewhere: what came before is to be "
        "there unchanged; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=processes, default=usable_cores(), metavar="N",
        help="that read side by side; by default as many as there are cores",
    )  # fmt: skip
    parser.add_argument(
        "--json",
        action="store_true",
        help="on standard output: each finding, each row that lacks images, and last the sums",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Verify an archive, and say what is wrong with it."""
    parser = command_line()
    given = parser.parse_args(argv)
    if given.seed is not None and given.sample is None:
        parser.error("--seed goes with --sample: leave it out")
    if given.manifest_format is not None and given.manifest is None:
        parser.error("--manifest-format goes with --manifest: leave it out")
    if is_at_work(given.out):
        say("a run is at work in this archive: what it has in hand may be told as a finding")
    with ExitStack() as stack:
        manifest = None
        if given.manifest is not None:
            manifest = stack.enter_context(
                Manifest(given.manifest, given.manifest_format, allow_empty=True)
            )
        bar = stack.enter_context(files_bar())
        telling = stack.enter_context(Telling(as_json=given.json))
        report = verify(
            given.out,
            percent=given.sample or 100.0,
            seed=given.seed,
            processes=given.processes,
            manifest=manifest,
            heads=given.head,
            found=telling.found,
            looked_at=bar.update,
            attested=telling.attested,
        )
    if given.json:
        print(json.dumps({"report": report.model_dump(mode="json")}))
    _show(report, telling)
    return 0 if report.ok else 1


def _show(report: Report, telling: Telling) -> None:
    rate = size_text(report.bytes / report.seconds) if report.seconds else "0 B"
    say(
        f"{counted(report.images, 'image')}, {report.unlisted:,} of them no longer listed: "
        f"{counted(report.sidecars, 'sidecar')}, {counted(report.files, 'file')}, "
        f"{report.hashed:,} of them hashed "
        f"({size_text(report.bytes)}, {rate}/s); runs: {report.runs:,}, "
        f"of them without a summary, since killed or at work: {report.runs_without_summary:,}"
    )
    if report.sample:
        say(f"a sample: --sample {report.sample.percent:g}% --seed {report.sample.seed}")
    if report.manifest:
        rows = report.manifest.model_dump()
        told = ", ".join(f"{n:,} {state.replace('_', ' ')}" for state, n in rows.items())
        say(f"rows of the manifest: {told}")
    if telling.filtered:
        images = counted(telling.filtered, "image")
        by = plain(" or ".join(sorted(telling.filters)))
        say(f"filtered: complete but for {images} left out by {by}")
    if report.ok:
        say("nothing is missing, changed or stray")
    if not report.manifest:
        say("who failed or was never asked for, only --manifest tells")
    advise(report)


def files_bar() -> tqdm[Never]:
    """Return a bar that counts files, on a terminal."""
    return tqdm((), unit=" files", file=sys.stderr, leave=False, disable=not sys.stderr.isatty())


class Telling:
    """Prints findings as they come: lines for a program, or some above the bar for a person.

    Its context raises what is wrong with standard output or error as it is; in a verification, it
    would be taken for the archive's failure.

    Attributes:
        filtered: the images that a filter left out, of all rows that were attested.
        filters: which filters did, as a command line has them.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._told: Counter[Kind] = Counter()
        self.filtered = 0
        self.filters: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, _UntoldError):
            raise error.reason from None

    def found(self, finding: Finding) -> None:
        """Tell a finding; a person is told of the first of each kind."""
        self._told[finding.kind] += 1
        if self._as_json:
            self._answer({"finding": finding._asdict()})
        elif self._told[finding.kind] <= _TOLD_OF_A_KIND:
            where = finding.path or label(finding.patient_id, finding.coverage_id)
            with _untold():
                tqdm.write(plain(f"{finding.kind}: {where}: {finding.detail}"), sys.stderr)

    def attested(self, row: ManifestRow, word: LastWord) -> None:
        """Tell a program of a row without an image, or but for what a filter left out."""
        self.filtered += word.filtered
        if word.filtered:
            self.filters.add(filters_text(word.filters))
        if self._as_json:
            ids = {"patient_id": row.patient_id, "coverage_id": row.coverage_id}
            what = "filtered" if word.filtered else "empty"
            self._answer({what: {**ids, **word._asdict()}})

    def _answer(self, value: object) -> None:
        with _untold():
            print(json.dumps(value))


class _UntoldError(Exception):
    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def _untold() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _UntoldError(error) from error


def advise(report: Report) -> None:
    """Say what to do about each kind of finding."""
    for kind, number in report.findings.items():
        if number > _TOLD_OF_A_KIND:
            say(f"… and {number - _TOLD_OF_A_KIND:,} more of {kind}: --json has them all")
        say(f"{number:,} {kind}: {ADVICE[kind]}")


def _percent(text: str) -> float:
    try:
        percent = float(text.removesuffix("%")) if text.endswith("%") else 0.0
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise argparse.ArgumentTypeError("must be such as 5%: more than 0% and at most 100%")
    return percent


def _digest(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError("must be 64 hex digits, as a run's last lines tell them")
    return text


def processes(text: str) -> int:
    """Read how many processes there are to be."""
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 256:
        raise argparse.ArgumentTypeError("must be from 1 to 256")
    return number
