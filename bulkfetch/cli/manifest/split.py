"""`bulkfetch manifest split`: one manifest made into several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bulkfetch.building import split_manifest
from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import say
from bulkfetch.logs import plain
from bulkfetch.manifest import ManifestFormat
from bulkfetch.words import counted


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "manifest split",
        "Make one manifest into several, by the patient's ID: the same shares as those of\n"
        "download --shard I/N. The form and the columns stay; uses no network.",
        ["bulkfetch manifest split patients.csv --shards 4 --to shares"],
        arguments="MANIFEST --shards N --to DIR",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="a file; - for standard input")
    parser.add_argument("--shards", metavar="N", type=int, required=True, help="how many")
    parser.add_argument(
        "--to", metavar="DIR", type=Path, required=True, help="where, made if it is not there"
    )
    parser.add_argument(
        "--manifest-format", choices=list(ManifestFormat), type=ManifestFormat, metavar="FORM",
        help=f"where the ending does not tell: {', '.join(ManifestFormat)}",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the sums, on standard output")
    return parser


def run(argv: Sequence[str]) -> int:
    """Split a manifest, and say how many rows each share has."""
    parser = command_line()
    given = parser.parse_args(argv)
    split = split_manifest(given.manifest, given.shards, given.to, given.manifest_format)
    for path, rows in split.shares.items():
        say(plain(f"{path}: {counted(rows, 'row')}{'' if rows else ': an empty share'}"))
    mean = split.rows / given.shards
    largest = max(split.shares.values())
    say(
        f"{counted(split.rows, 'row')} in {counted(given.shards, 'share')}, "
        f"{counted(split.duplicates, 'repeated one')} left out; "
        f"the largest has {largest / mean if mean else 1:.2f} times the mean"
    )
    if not all(split.shares.values()):
        say("an empty share is for download --allow-empty")
    if given.json:
        print(split.model_dump_json())
    return 0
