"""`bulkfetch report`: one page about an archive, to look at."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Never

from tqdm import tqdm

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import ended_by_signals
from bulkfetch.cli.verify import processes
from bulkfetch.errors import ConfigurationError

_THUMBNAILS = 2_000
_NEEDED = ("jinja2", "PIL", "pypdfium2")


def run(argv: Sequence[str]) -> int:
    """Make the page, and print its path."""
    given = command_line().parse_args(argv)
    if not all(map(find_spec, _NEEDED)):
        raise ConfigurationError("the report takes what pip install 'bulkfetch[report]' brings")
    # What it takes to load is not needed for help.
    from bulkfetch.report import make_report  # noqa: PLC0415  an extra

    thumbnails = given.thumbnails
    if thumbnails is None and not given.folder:
        thumbnails = _THUMBNAILS
    with ended_by_signals(), _Bar() as bar:
        page = make_report(
            given.out,
            given.to,
            folder=given.folder,
            show_names=given.show_names,
            thumbnails=thumbnails,
            processes=given.processes,
            looked_at=bar.count,
        )
    print(page)
    return 0


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "report",
        "Make one HTML page about an archive: totals, failures and what to do about each kind,\n"
        "rates over time, and a contact sheet to filter and search. It loads nothing and sends\n"
        "nothing. It shows pictures of cards: keep it as you keep the archive.",
        [
            "bulkfetch report archive",
            "bulkfetch report archive --to monday.html --folder",
            "bulkfetch report s3://bucket/archive --thumbnails 0",
        ],
        arguments="DEST",
    )
    parser.add_argument("out", metavar="DEST", help="the archive")
    parser.add_argument(
        "--to", default="report.html", metavar="FILE",
        help="the page; an earlier one there is replaced [report.html]",
    )  # fmt: skip
    parser.add_argument(
        "--folder", action="store_true",
        help="put all thumbnails into a directory beside the page, such as report.html-thumbnails",
    )  # fmt: skip
    parser.add_argument(
        "--thumbnails", type=_number, metavar="N",
        help=f"so many at most, 0 for none [{_THUMBNAILS}; with --folder all]",
    )  # fmt: skip
    parser.add_argument(
        "--show-names", action="store_true",
        help="with display names, file names, notes and the manifest's own columns",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=processes, metavar="N",
        help="that make thumbnails side by side; by default as many as there are cores, or 8 for a "
        "bucket",
    )  # fmt: skip
    return parser


class _Bar:
    """What was looked at so far, in a line on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self._what = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def count(self, what: str, number: int) -> None:
        """Count so many more of something; another thing begins another line."""
        if what != self._what:
            self._close()
            self._what = what
            self._bar = tqdm(
                (), unit=f" {what}", file=sys.stderr, leave=False, disable=not sys.stderr.isatty()
            )
        if self._bar is not None:
            self._bar.update(number)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError("must be a number of thumbnails, 0 for none")
    return int(text)
