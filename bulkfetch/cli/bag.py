"""`bulkfetch bag`: pack an archive for whoever is to keep it next."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial

from bulkfetch.bag import (
    STANDARD_OUTPUT,
    BagReport,
    Label,
    Opening,
    as_tar,
    as_zip,
    in_directory,
    make_bag,
    parse_label,
)
from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import ended_by_signals, say
from bulkfetch.cli.verify import Telling, advise, files_bar, processes
from bulkfetch.limits import usable_cores
from bulkfetch.progress import size_text
from bulkfetch.words import counted


def run(argv: Sequence[str]) -> int:
    """Make a bag, or say why this archive is not to be handed over."""
    given = _parse(argv)
    opening: Opening
    if given.to is not None:
        opening = partial(in_directory, given.to, copy=given.copy)
    else:
        opening = partial(as_zip, given.zip) if given.tar is None else partial(as_tar, given.tar)
    with ended_by_signals(), files_bar() as bar, Telling(as_json=given.json) as telling:
        report = make_bag(
            given.out,
            opening,
            info=given.info,
            # A stream is written by one.
            processes=1 if given.to is None else given.processes or usable_cores(),
            found=telling.found,
            looked_at=bar.update,
        )
    if given.json:
        print(json.dumps({"report": report.model_dump(mode="json")}))
    _show(report)
    return 0 if report.bag else 1


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "bag",
        "Pack an archive as a BagIt 1.0 bag (RFC 8493), to hand it over. Each file is read once,\n"
        "and verified by that; an archive with a finding is refused. Only the bag is written.",
        [
            "bulkfetch bag archive --to bag --info 'Source-Organization: An Archive'",
            "bulkfetch bag archive --zip bag.zip",
            "bulkfetch bag archive --tar - | ssh keeper 'cat > bag.tar'",
        ],
        arguments="DEST (--to DIR | --tar FILE | --zip FILE)",
    )
    parser.add_argument("out", metavar="DEST", help="the archive")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="DIR", help="a new directory, linked to the archive's files")
    where.add_argument(
        "--tar", metavar="FILE", help="a new .tar, .tar.gz or .tgz file; - for standard output"
    )
    where.add_argument("--zip", metavar="FILE", help="a new .zip file, without compression")
    parser.add_argument(
        "--copy", action="store_true",
        help="with --to: copy the files, where no links can be or none are wanted",
    )  # fmt: skip
    parser.add_argument(
        "--info", type=_label, action="append", default=[], metavar="'NAME: VALUE'",
        help="a line for bag-info.txt, such as 'Contact-Email: keeper@example.org'; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=processes, metavar="N",
        help="with --to: that read side by side; by default as many as there are cores",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="a line for each finding on standard output; what was made last",
    )  # fmt: skip
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line()
    given = parser.parse_args(argv)
    if given.to is None and (given.copy or given.processes):
        parser.error("--copy and --processes go with --to: leave them out")
    if given.tar == STANDARD_OUTPUT and given.json:
        parser.error("--json and --tar - both want standard output: name a file with --tar")
    return given


def _show(report: BagReport) -> None:
    if report.bag is None:
        say("the archive does not verify, so no bag was made")
        advise(report.verification)
        return
    say(
        f"{report.bag}: {counted(report.payload_files, 'file')} "
        f"({size_text(report.payload_bytes)}) of "
        f"{counted(report.patients, 'patient')}, each read once and verified; "
        f"{counted(report.tag_files, 'tag file')}"
    )
    say(
        f"SHA-256 of tagmanifest-sha256.txt: {report.tagmanifest_sha256}\n"
        "tell it to whoever gets the bag by another way: it stands for every byte"
    )


def _label(text: str) -> Label:
    try:
        return parse_label(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
