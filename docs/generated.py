"""Writes what is made from the code and kept beside it: `make generated`; a test compares."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from argparse_manpage.manpage import Manpage
from pydantic import TypeAdapter

from bulkfetch._version import __version__
from bulkfetch.cli.whole import whole_command_line
from bulkfetch.models import Sidecar, Summary, UnlistedSidecar

_ROOT = Path(__file__).parent.parent
# Of what it says last; without one, mandoc complains.
_DATE = "November 28, 2026"
_STATUSES = """\
0    all of it is in the archive, but for what was filtered
1    something failed: failures.csv names it
2    the command line, the configuration or the manifest is wrong
3    the API refused the credentials
4    the destination cannot be used
130  interrupted by Ctrl-C (SIGTERM: 143, a lost terminal: 129)"""
_ENVIRONMENT = """\
BULKFETCH_<OPTION>                 each option: BULKFETCH_QUERY_CONCURRENCY
BULKFETCH_CLIENT_ID                credentials, with one of the next two
BULKFETCH_CLIENT_SECRET
BULKFETCH_CLIENT_SECRET_FILE
BULKFETCH_TOKEN                    or a bearer token, in one of these
BULKFETCH_TOKEN_FILE
NO_COLOR                           heeded: help is coloured on a terminal alone"""


def generated() -> dict[Path, str]:
    """Return the texts of the files, by their paths."""
    schemas = _ROOT / "bulkfetch" / "schemas"
    return {
        _ROOT / "docs" / "bulkfetch.1": _manual_page(),
        schemas / "sidecar.schema.json": _schema(
            TypeAdapter(Sidecar | UnlistedSidecar), "A sidecar, or a revision of one"
        ),
        schemas / "summary.schema.json": _schema(TypeAdapter(Summary), "A run's summary.json"),
    }


def _schema(model: TypeAdapter[object], title: str) -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **model.json_schema(mode="serialization"),
        "title": title,
    }
    return json.dumps(schema, indent=2) + "\n"


def _manual_page() -> str:
    """Return bulkfetch(1), in the language of groff's man macros."""
    parser = whole_command_line()
    made = Manpage(parser)
    made.date = _DATE
    made.source = f"bulkfetch {__version__}"
    made.manual = "User Commands"
    made.description = "fetch every insurance-card image of the patients in a manifest"
    examples = (text for command in _commands(parser) for text in _examples(command))
    sections = {
        "EXAMPLES": "\n\n".join(examples),
        "ENVIRONMENT": _ENVIRONMENT,
        "EXIT STATUS": _STATUSES,
    }
    beside = "".join(f".SH {name}\n.nf\n{_roff(text)}\n.fi\n" for name, text in sections.items())
    return f"{str(made).rstrip()}\n{beside}"


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    found = [command for choices in below for command in choices.values()]
    return [one for command in found for one in (command, *_commands(command))]


def _examples(command: argparse.ArgumentParser) -> list[str]:
    _, _, text = (command.epilog or "").partition("examples:\n")
    return [text.partition("\n\n")[0].rstrip()] if text else []


def _roff(text: str) -> str:
    r"""Escape what means something: `\` and `-`, and `.` and `'` at a line's beginning."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(rf"\&{line}" for line in escaped.splitlines())


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
