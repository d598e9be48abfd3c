"""`bulkfetch schema`: the JSON Schemas that are shipped with the package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser

_NAMES = ("sidecar", "summary")


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "schema",
        "Print a JSON Schema (draft 2020-12): of the sidecars of an archive, the revisions among\n"
        "them; or of a run's summary.json. Both are files of the package, too:\n"
        "bulkfetch/schemas/*.schema.json.",
        [
            "bulkfetch schema sidecar > sidecar.schema.json",
            "check-jsonschema --schemafile sidecar.schema.json archive/*/*.json",
        ],
        arguments="NAME",
    )
    parser.add_argument("name", metavar="NAME", choices=_NAMES, help=" or ".join(_NAMES))
    return parser


def run(argv: Sequence[str]) -> int:
    """Print a schema."""
    name = command_line().parse_args(argv).name
    schema = files("bulkfetch") / "schemas" / f"{name}.schema.json"
    print(schema.read_text(encoding="utf-8"), end="")
    return 0
