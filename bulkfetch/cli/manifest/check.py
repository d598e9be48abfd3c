"""`bulkfetch manifest check`: is a manifest good, without any network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import say
from bulkfetch.manifest import Manifest, ManifestFormat
from bulkfetch.words import counted


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "manifest check",
        "Read every row of a manifest, and name the bad ones. Uses no network.",
        ["bulkfetch manifest check patients.csv", "bulkfetch manifest check - --json < ids.csv"],
        arguments="MANIFEST",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="a file; - for standard input")
    parser.add_argument(
        "--manifest-format",
        choices=list(ManifestFormat),
        type=ManifestFormat,
        metavar="FORM",
        help=f"where the ending does not tell: {', '.join(ManifestFormat)}",
    )
    parser.add_argument(
        "--allow-empty", action="store_true", help="a manifest without rows is no error"
    )
    parser.add_argument("--json", action="store_true", help="what was found, on standard output")
    return parser


def run(argv: Sequence[str]) -> int:
    """Check a manifest and say what is in it."""
    parser = command_line()
    given = parser.parse_args(argv)
    with Manifest(given.manifest, given.manifest_format, allow_empty=given.allow_empty) as manifest:
        facts = manifest.check()
    say(
        f"{manifest.name}: {counted(facts.rows, 'row')}, {facts.distinct:,} to fetch, "
        f"{facts.duplicates:,} repeated; "
        f"other columns: {', '.join(facts.columns) or 'none'}"
    )
    for example in facts.duplicate_examples:
        say(f"  {example}")
    if given.json:
        print(json.dumps(asdict(facts)))
    return 0
