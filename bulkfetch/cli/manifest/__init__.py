"""`bulkfetch manifest`: manifests made, checked and split; each command is a module of its own."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from bulkfetch.cli.options import command_parser

COMMANDS = {
    "build": "make a manifest from the API: all patients, or those changed since a time",
    "check": "read every row of a manifest, and name the bad ones; no network",
    "split": "make one manifest into several, for jobs of their own",
}


def run(argv: Sequence[str]) -> int:
    """Do one of the commands about manifests."""
    parser = command_parser(
        "manifest",
        "Work with manifests.\n\n"
        + "".join(f"  {name:<6} {what}\n" for name, what in COMMANDS.items()),
        ["bulkfetch manifest check patients.csv", "bulkfetch manifest build --help"],
        arguments="COMMAND MANIFEST",
    )
    parser.add_argument("command", metavar="COMMAND", help="one of these")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    parser.refuse_unknown(given.command, COMMANDS)
    status: int = importlib.import_module(f"{__name__}.{given.command}").run(given.rest)
    return status
