"""`bulkfetch verify`: re-read an archive, and prove it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Never

from tqdm import tqdm

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.running import say
from bulkfetch.limits import usable_cores
from bulkfetch.logs import plain
from bulkfetch.manifest import Manifest, ManifestFormat
from bulkfetch.models import ManifestRow, label
from bulkfetch.progress import size_text
from bulkfetch.verification import ADVICE, Finding, LastWord, Report, is_at_work, verify
from bulkfetch.words import counted


def run(argv: Sequence[str]) -> int:
    """Verify an archive, and say what is wrong with it."""
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
        "--sample", type=_percent, default=100.0, metavar="P%",
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
        help="a line for each finding, and each row without image, on standard output; sums last",
    )
    given = parser.parse_args(argv)
    if is_at_work(given.out):
        say("a run is at work in this archive: what it has in hand may be told as a finding")
    with ExitStack() as stack:
        manifest = None
        if given.manifest is not None:
            manifest = stack.enter_context(
                Manifest(given.manifest, given.manifest_format, allow_empty=True)
            )
        bar = stack.enter_context(files_bar())

        def attested(row: ManifestRow, word: LastWord) -> None:
            if given.json:
                ids = {"patient_id": row.patient_id, "coverage_id": row.coverage_id}
                print(json.dumps({"empty": {**ids, **word._asdict()}}))

        report = verify(
            given.out,
            percent=given.sample,
            seed=given.seed,
            processes=given.processes,
            manifest=manifest,
            heads=given.head,
            found=partial(tell, as_json=given.json),
            looked_at=bar.update,
            attested=attested,
        )
    if given.json:
        print(json.dumps({"report": report.model_dump(mode="json")}))
    _show(report)
    return 0 if report.ok else 1


def _show(report: Report) -> None:
    rate = size_text(report.bytes / report.seconds) if report.seconds else "0 B"
    say(
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
    if report.ok:
        say("nothing is missing, changed or stray")
    if not report.manifest:
        say("whom no run came to, or had no luck with, only --manifest tells")
    advise(report)


def files_bar() -> tqdm[Never]:
    """Return a bar that counts files, on a terminal."""
    return tqdm((), unit=" files", file=sys.stderr, leave=False, disable=not sys.stderr.isatty())


def tell(finding: Finding, *, as_json: bool) -> None:
    """Print a finding: a line for a program, or one above the bar for a person."""
    if as_json:
        print(json.dumps({"finding": finding._asdict()}))
    else:
        where = finding.path or label(finding.patient_id, finding.coverage_id)
        tqdm.write(plain(f"{finding.kind}: {where}: {finding.detail}"), sys.stderr)


def advise(report: Report) -> None:
    """Say what to do about each kind of finding."""
    for kind, number in report.findings.items():
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
