"""The options of a command, made from the fields of its settings: each is described once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

from bulkfetch.cli.parser import Parser
from bulkfetch.logs import LogFormat, LogLevel
from bulkfetch.progress import ProgressStyle
from bulkfetch.settings import (
    ENV_PREFIX,
    GROUPS,
    OUT,
    OUTPUT,
    Connection,
    Listening,
    Option,
    PathText,
    PromFile,
    Settings,
    options_of,
)
from bulkfetch.settings.values import Known


class ShownConnection(Connection):
    """The options of a command that talks to the API, and how it looks."""

    progress: Annotated[ProgressStyle, Option(OUTPUT, "STYLE")] = Field(
        default=ProgressStyle.auto,
        description=f"on standard error: {', '.join(ProgressStyle)}",
    )
    log_level: Annotated[LogLevel, Option(OUTPUT, "LEVEL")] = Field(
        default=LogLevel.warning, description=f"say this and worse: {', '.join(LogLevel)}"
    )
    log_format: Annotated[LogFormat, Option(OUTPUT, "FORM")] = Field(
        default=LogFormat.text, description=f"of log lines: {', '.join(LogFormat)}"
    )
    as_json: Annotated[bool, Option(OUTPUT)] = Field(
        default=False, alias="json", description="the answer for a program, on standard output"
    )


class DownloadSettings(ShownConnection, Settings):
    """The options of `download`."""

    metrics_file: Annotated[PromFile | None, Option(OUTPUT, "FILE")] = Field(
        default=None,
        description="write numbers for Prometheus there, such as /srv/textfiles/nightly.prom",
    )
    metrics_port: Annotated[Listening, Option(OUTPUT, "[HOST:]PORT")] = Field(
        default=None, description="serve them at this port, on loopback unless a host is named"
    )


class DoctorSettings(DownloadSettings):
    """The options of `download`, where no archive needs to be named."""

    # None goes no further: whoever is given these settings is given `out` apart.
    out: Annotated[PathText | None, OUT] = Field(  # type: ignore[assignment]
        default=None, description="the archive to check"
    )


def add_options(parser: Parser, settings_type: type[Connection]) -> None:
    """Add an option for each field that is one; only those given end up in the namespace."""
    options = options_of(settings_type)
    used = {option.group for option in options.values()}
    groups: dict[str, Any] = {
        group: parser.add_argument_group(group) for group in GROUPS if group in used
    }
    for name, option in options.items():
        field = settings_type.model_fields[name]
        key = field.alias or name
        flag = "--" + key.replace("_", "-")
        flags = [option.short, flag] if option.short else [flag]
        arguments: dict[str, Any] = {
            "dest": key,
            "default": argparse.SUPPRESS,
            "help": f"{field.description}{_default(field)}".replace("%", "%%"),
        }
        if field.annotation is bool:
            negative = flag.replace("--no-", "--", 1) if "--no-" in flag else f"--no-{flag[2:]}"
            groups[option.group].add_argument(*flags, action="store_true", **arguments)
            # To take back what the environment or the file says; not worth a line of help.
            groups[option.group].add_argument(
                negative,
                dest=key,
                action="store_false",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
        else:
            several = get_origin(field.annotation) is tuple
            parser.words[key] = _words(field)
            groups[option.group].add_argument(
                *flags,
                metavar=option.metavar,
                action="append" if several else "store",
                **arguments,
            )


def given_options(namespace: argparse.Namespace, *positional: str) -> Mapping[str, Any]:
    """Return what the command line gave, without the positional arguments."""
    return {name: value for name, value in vars(namespace).items() if name not in positional}


def command_parser(
    command: str, description: str, examples: Sequence[str], *, arguments: str = ""
) -> Parser:
    """Return a parser that looks like those of the other commands.

    `arguments` is what its usage line says between the command and its options.
    """
    return Parser(
        prog=f"bulkfetch {command}",
        usage=" ".join(filter(None, ["%(prog)s", arguments, "[OPTIONS]"])),
        description=description,
        epilog="examples:\n" + "".join(f"  {example}\n" for example in examples),
    )


ENVIRONMENT_NOTE = (
    f"Each option can be set as {ENV_PREFIX}<OPTION> in the environment, or as a key in --config "
    "FILE;\nthe command line wins over the environment, that over the file.\n"
    f"Credentials are no options: set {ENV_PREFIX}CLIENT_ID and {ENV_PREFIX}CLIENT_SECRET\n"
    f"(or {ENV_PREFIX}CLIENT_SECRET_FILE), or {ENV_PREFIX}TOKEN (or {ENV_PREFIX}TOKEN_FILE)."
)


def _words(field: FieldInfo) -> Sequence[str]:
    """Return what a field may be, or is likely to be; nothing where it may be anything."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return list(kind)
    checks = (item.func for item in field.metadata if isinstance(item, AfterValidator))
    return next((check.names for check in checks if isinstance(check, Known)), ())


def _default(field: FieldInfo) -> str:
    default = field.get_default()
    if default in (None, (), False) or field.is_required():
        return ""
    return f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
