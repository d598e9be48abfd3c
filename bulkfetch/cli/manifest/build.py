"""`bulkfetch manifest build`: a manifest made from what the API lists."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Self

from tqdm import tqdm

from bulkfetch import logs
from bulkfetch.building import STANDARD_OUTPUT, Built, Sofar, build_manifest
from bulkfetch.cli.options import (
    ENVIRONMENT_NOTE,
    ShownConnection,
    add_options,
    command_parser,
    given_options,
)
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import say
from bulkfetch.errors import ConfigurationError, FetchError, StatusError
from bulkfetch.logs import Event, about
from bulkfetch.progress import PLAIN_EVERY_S, ProgressStyle
from bulkfetch.settings import Building, load, unknown_variables
from bulkfetch.words import counted

log = logging.getLogger(__name__)


# In the environment or a file they may be meant for other builds.
_CURSORS = ("out", "cursor")


class BuildSettings(ShownConnection, Building):
    """The options of `manifest build`."""


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "manifest build",
        "Make a manifest from the API: of all active patients, or with --since or --since-last of\n"
        "those changed since, deactivated ones too. A manifest that is there is replaced once the\n"
        "new one is whole; a build that was interrupted is gone on with by the same command.\n\n"
        + ENVIRONMENT_NOTE,
        [
            "bulkfetch manifest build patients.csv --coverages",
            "bulkfetch manifest build changed.jsonl.gz --since 2026-11-01",
            "bulkfetch manifest build nightly.csv --since-last --out archive",
        ],
        arguments="MANIFEST",
    )
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="a .csv, .tsv, .txt, .jsonl (each also .gz) or .parquet file; - for standard output",
    )
    add_options(parser, BuildSettings)
    return parser


def run(argv: Sequence[str]) -> int:
    """Make a manifest, and say what is in it."""
    parser = command_line()
    namespace = parser.parse_args(argv)
    given = given_options(namespace, "manifest")
    settings = load(BuildSettings, given)
    if not settings.since_last and (useless := [f"--{key}" for key in _CURSORS if key in given]):
        raise ConfigurationError(
            f"{' and '.join(useless)} can do nothing without --since-last: give that too, or leave "
            "out what is for it alone"
        )
    if settings.as_json and namespace.manifest == STANDARD_OUTPUT:
        raise ConfigurationError("--json and - both want standard output: name a file")
    logs.configure(settings.log_level, settings.log_format)
    for mistake in unknown_variables():
        log.warning("%s", mistake, extra=about(Event.variable_unknown))
    try:
        with _Shown(settings.progress) as shown:
            built = asyncio.run(build_manifest(namespace.manifest, settings, shown=shown))
    except FetchError as error:
        advice = "run the same command again to go on from here"
        if isinstance(error, StatusError) and error.status == HTTPStatus.FORBIDDEN:
            advice = "may these credentials read patients?"
        say(f"bulkfetch: {logs.redact(str(error))}; the manifest is not finished: {advice}")
        return error.exit_status
    _show(built)
    if settings.as_json:
        print(built.model_dump_json())
    return 1 if built.missing else 0


def _show(built: Built) -> None:
    times = ""
    if built.first_updated_at:
        times = f", updated from {built.first_updated_at} to {built.last_updated_at}"
    say(
        logs.plain(
            f"{built.manifest}: {counted(built.patients, 'patient')}, "
            f"{counted(built.coverages, 'coverage')}{times}; "
            f"{counted(built.requests, 'request')}, {built.seconds:.1f} s"
        )
    )
    if built.resumed:
        say("gone on from where an earlier build had ended")
    if built.unconfirmed:
        say(
            "the archive has no whole run on the manifest before this one: whoever was in that one "
            "is in this one too"
        )
    if built.since and not built.patients and not built.coverages:
        say("nobody changed: download takes such a manifest with --allow-empty")
    if built.missing:
        say(
            f"counted by the API and not listed: {counted(built.missing, 'patient')}. "
            "The manifest is written, and may lack them: run again, or scan with --since 1970-01-01"
        )


class _Shown:
    """How far a build is, on standard error: a context, and told after each page."""

    def __init__(self, style: ProgressStyle) -> None:
        if style is ProgressStyle.auto:
            style = ProgressStyle.bar if sys.stderr.isatty() else ProgressStyle.plain
        self._style = style
        self._last = time.monotonic()
        self._bar = tqdm(
            unit=" patients", file=sys.stderr, leave=False, disable=style is not ProgressStyle.bar
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __call__(self, so_far: Sofar) -> None:
        self._bar.total = so_far.total
        self._bar.update(so_far.patients - self._bar.n)
        if self._style is ProgressStyle.plain and time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            of = f" of {so_far.total:,}" if so_far.total is not None else ""
            coverages = counted(so_far.coverages, "coverage")
            say(f"{counted(so_far.patients, 'patient')}{of}, {coverages}")
