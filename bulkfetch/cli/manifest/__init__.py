"""`bulkfetch manifest`: manifests made, checked and split; each command is a module of its own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser

COMMANDS = {
    "build": "make a manifest from the API: of all patients, or those changed since",
    "check": "read every row of a manifest, and name the bad ones; no network",
    "split": "make one manifest into several, for jobs of their own",
}


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "manifest",
        "Work with manifests.\n\n"
        + "".join(f"  {name:<6} {what}\n" for name, what in COMMANDS.items()),
        [
            "bulkfetch manifest check patients.csv",
            "bulkfetch manifest build patients.csv",
            "bulkfetch manifest split --help",
        ],
        arguments="COMMAND MANIFEST",
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def run(argv: Sequence[str]) -> int:
    """Do one of the commands about manifests."""
    parser = command_line()
    given = parser.parse_args(argv)
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    parser.refuse_unknown(given.command, COMMANDS)
    status: int = importlib.import_module(f"{__name__}.{given.command}").run(given.rest)
    return status
