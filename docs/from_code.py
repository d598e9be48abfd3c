"""The parts of the pages that are made from the code when the site is built.

A page says where: `<!-- from the code: options -->` stands for what `options` returns, in Markdown.
Whatever is in the code and has no words is an error here, and a test.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin
from unittest import mock

import annotated_types
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from yarl import URL

import bulkfetch
from bulkfetch import cli, errors, journal
from bulkfetch.cli import manifest, running
from bulkfetch.cli.manifest.build import BuildSettings
from bulkfetch.cli.options import DoctorSettings, DownloadSettings
from bulkfetch.models import Summary, UnlistedSidecar
from bulkfetch.pipeline import record
from bulkfetch.settings import ENV_PREFIX, GROUPS, Connection, Environment, Option, options_of
from bulkfetch.settings.hosts import HOSTS
from bulkfetch.verification import ADVICE
from docs.words import EVENTS, FIELDS, KEYS

_FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")
_PLACE = re.compile(r"^<!-- from the code: (\w+) -->$", re.MULTILINE)

SETTINGS: Mapping[str, type[Connection]] = {
    "download": DownloadSettings,
    "doctor": DoctorSettings,
    "manifest build": BuildSettings,
}
"""The commands whose options may come from the environment and a file, too."""


def fill(page: str) -> str:
    """Return a page with what the code says in its places."""
    return _PLACE.sub(lambda place: PARTS[place[1]](), page)


def options() -> str:
    """Every option that is also a variable and a key, by the headings of `--help`."""
    lines: list[str] = []
    for group in GROUPS:
        lines += ["", f"## {group[:1].upper()}{group[1:]}"]
        for key, variants in _options_of(group).items():
            lines += ["", f"### `--{_dashed(key)}`", ""]
            for (words, value), commands in variants.items():
                where = f"{_codes(commands)}: " if len(variants) > 1 else ""
                lines.append(f"- {where}{words}  \n  {value}")
            once = "" if len(variants) > 1 else f"; {_codes(next(iter(variants.values())))}"
            lines.append(f"- `{ENV_PREFIX}{key.upper()}`, in a file `{key}`{once}")
    return "\n".join(lines)


def credentials() -> str:
    """The variables that are no options, since a process list shows those."""
    return _table(
        ("variable", "what it is"),
        (
            (f"`{ENV_PREFIX}{name.upper()}`", field.description)
            for name, field in Connection.model_fields.items()
            if name not in options_of(Connection)
        ),
    )


def hosts() -> str:
    """The vendor's hosts, by environment."""
    told = {name: [f"`{URL(url).host}`" for url in urls] for name, urls in HOSTS.items()}
    rows = ((f"`{name}`", *told[name]) for name in HOSTS if name is not Environment.local)
    return _table(("environment", "API", "tokens"), rows)


def commands() -> str:
    """What `--help` says of every command."""
    return "\n\n".join(
        f"## `{' '.join(['bulkfetch', *name.split()])}`\n\n```text\n{help_of(name)}```"
        for name in ("", *every_command())
    )


def every_command() -> Iterator[str]:
    """Every command, as it is typed after `bulkfetch`."""
    for name in cli.COMMANDS:
        yield name
        if name == "manifest":
            yield from (f"manifest {below}" for below in manifest.COMMANDS)


def help_of(command: str) -> str:
    """What `bulkfetch COMMAND --help` prints, as on a terminal of 100 columns."""
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        cli.main([*command.split(), "--help"])
    return said.getvalue()


def exit_statuses() -> str:
    """Each status, and the errors that end a run with it."""
    raised: dict[int, list[str]] = {}
    for error in every_error():
        if not issubclass(error, errors.FetchError) and error is not errors.BulkfetchError:
            raised.setdefault(error.exit_status, []).append(f"`{error.__name__}`: {_first(error)}")
    rows = [(str(status), "<br>".join(words)) for status, words in sorted(raised.items())]
    for status, number in sorted((s, n) for n, s in running.EXIT_STATUS.items()):
        rows.append((str(status), f"{number.name}: what was finished is whole"))
    return _table(("status", "what it is raised as"), rows)


def kinds() -> str:
    """Each kind of failure of a patient or an image, by its stable word."""
    return _table(
        ("`bulkfetch_kind`", "what failed", "raised as"),
        (
            (f"`{error.kind}`", _first(error), f"`{error.__name__}`")
            for error in every_error(errors.FetchError)
            if error is not errors.FetchError
        ),
    )


def findings() -> str:
    """What `verify` may find, and what to do about each."""
    return _table(
        ("finding", "what to do"),
        ((f"`{kind}`", _FLAG.sub(r"`\1`", words)) for kind, words in ADVICE.items()),
    )


def sidecar() -> str:
    """The keys of a sidecar, in their order."""
    return _keys(UnlistedSidecar)


def summary() -> str:
    """The keys of a summary, in their order."""
    return _keys(Summary)


def journal_events() -> str:
    """Each event of a journal, and the fields of its line."""
    written = written_events()
    return "\n\n".join(
        f"### `{event}`\n\n{words}\n\n"
        + _table(("field", "what it is"), ((f"`{name}`", FIELDS[name]) for name in written[event]))
        for event, words in EVENTS.items()
    )


def python() -> str:
    """What the package exports, by its docstrings."""
    exported = {name: getattr(bulkfetch, name) for name in sorted(bulkfetch.__all__)}
    raised = [name for name, thing in exported.items() if _is_a(thing, BaseException)]
    classes = [name for name, thing in exported.items() if _is_a(thing, object)]
    called = [name for name, thing in exported.items() if callable(thing) and name not in classes]
    sections = {
        "Functions": ("autofunction", called),
        "Classes": ("autoclass", [name for name in classes if name not in raised]),
        "Errors": ("autoexception", raised),
    }
    return "\n\n".join(
        f"## {heading}\n\n```{{eval-rst}}\n"
        + "\n".join(f".. {directive}:: bulkfetch.{name}" for name in names)
        + "\n```"
        for heading, (directive, names) in sections.items()
    )


def written_events() -> Mapping[str, Sequence[str]]:
    """Every event that the code writes to a journal, and the fields that it may have."""
    found: dict[str, tuple[str, ...]] = {}
    for module in (record, journal):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="event"),
                    args=[ast.Constant(value=str(event))],
                    keywords=keywords,
                ):
                    found[event] = tuple(_names(keywords))
    return found


def every_error(
    error: type[errors.BulkfetchError] = errors.BulkfetchError,
) -> Iterator[type[Any]]:
    """Every error of a branch of the tree, from its root on."""
    yield error
    for branch in error.__subclasses__():
        yield from every_error(branch)


def _names(keywords: Iterable[ast.keyword]) -> Iterator[str]:
    for keyword in keywords:
        # What is unpacked is an error's fields.
        yield from (keyword.arg,) if keyword.arg else ("kind", "error")


PARTS: Mapping[str, Callable[[], str]] = {
    part.__name__: part
    for part in (
        options,
        credentials,
        hosts,
        commands,
        exit_statuses,
        kinds,
        findings,
        sidecar,
        summary,
        journal_events,
        python,
    )
}


def _options_of(group: str) -> Mapping[str, Mapping[tuple[str, str], list[str]]]:
    """The options under a heading: what each is said to be, by which commands."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}
    for command, settings in SETTINGS.items():
        for name, option in options_of(settings).items():
            field = settings.model_fields[name]
            if option.group == group:
                words = _FLAG.sub(r"`\1`", f"{field.description}.")
                told = (words[:1].upper() + words[1:], _value(field, option))
                variants = found.setdefault(field.alias or name, {})
                variants.setdefault(told, []).append(command)
    return found


def _value(field: FieldInfo, option: Option) -> str:
    """What an option takes, within which bounds, and what it is by default."""
    kind = _without_none(field.annotation)
    default = field.get_default()
    if field.is_required():
        told = "must be given"
    elif default in (None, (), False):
        told = "no by default" if kind is bool else "not set by default"
    else:
        told = (
            f"by default `{default:g}`" if isinstance(default, float) else f"by default `{default}`"
        )
    takes = _takes(kind) + _bounds(field)
    if option.metavar:
        takes = f"`{option.metavar}`{': ' if takes else ''}{takes}"
    return f"{takes}; {told}"


def _takes(kind: Any) -> str:  # noqa: ANN401  an annotation may be anything
    if get_origin(kind) is tuple:
        return "may be repeated; commas in a variable, a list in a file"
    if kind is bool:
        return "yes or no: `true` or `false` in a variable or a file"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    plain = {int: "a whole number", float: "a number", ByteSize: "bytes, or such as `50MB`"}
    return plain.get(kind, "a time" if kind is datetime else "")


def _bounds(field: FieldInfo) -> str:
    words = {
        annotated_types.Ge: "from {:,}",
        annotated_types.Gt: "above {:,}",
        annotated_types.Le: "to {:,}",
        annotated_types.Lt: "below {:,}",
    }
    told = [
        words[type(bound)].format(getattr(bound, type(bound).__name__.lower()))
        for bound in field.metadata
        if type(bound) in words
    ]
    return f" {' '.join(told)}" if told else ""


def _without_none(annotation: Any) -> Any:  # noqa: ANN401  the same
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _keys(model: type[BaseModel], prefix: str = "") -> str:
    return _table(("key", "form", "what it is"), _rows(model, prefix))


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        kind = _without_none(field.annotation)
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        key = f"{prefix}{name}"
        form = "object" if nested else _form(kind)
        if kind is not field.annotation and type(None) in get_args(field.annotation):
            form += ", or null"
        yield f"`{key}`", form, field.description or KEYS[key]
        if nested:
            yield from _rows(kind, f"{key}.")


def _form(kind: Any) -> str:  # noqa: ANN401  the same
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    if get_origin(kind) is dict or kind is dict:
        return "object"
    if get_args(kind):
        return ", ".join(str(value) for value in get_args(kind))
    plain = {int: "whole number", float: "number", bool: "true or false", datetime: "time"}
    return plain.get(kind, "string")


def _is_a(thing: object, kind: type[object]) -> bool:
    return isinstance(thing, type) and issubclass(thing, kind)


def _first(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    # A bar would end the cell.
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
