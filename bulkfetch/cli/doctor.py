"""`bulkfetch doctor`: what stands between this machine and the images, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Sequence
from functools import partial

from bulkfetch import logs
from bulkfetch.cli.options import (
    ENVIRONMENT_NOTE,
    DoctorSettings,
    add_options,
    command_parser,
    given_options,
)
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import heeding_signals, say
from bulkfetch.doctor import BY_DEFAULT, Check, Setting, Setup, State, Sums, examine, set_up
from bulkfetch.words import counted

_NAME_WIDTH = 12
_WIDTH = 96
_INDENT = " " * 9


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "doctor",
        "Check all that a run needs: settings, credentials, DNS, TLS, clock, API, storage,\n"
        "destination, disk and limits. Fetches one byte of one image, and leaves nothing.\n"
        "Takes the options of `download`, so that its command line can be tried beforehand.\n\n"
        + ENVIRONMENT_NOTE,
        [
            "bulkfetch doctor --out archive",
            "bulkfetch doctor --environment staging --patient 7f9c2ba4",
            "bulkfetch doctor --config nightly.toml --json > checks.jsonl",
        ],
    )
    parser.add_argument(
        "--patient",
        metavar="ID",
        help="whose images to ask for; by default those of one whom the API lists",
    )
    add_options(parser, DoctorSettings)
    return parser


def run(argv: Sequence[str]) -> int:
    """Check all that a run needs, and say what is wrong."""
    parser = command_line()
    namespace = parser.parse_args(argv)
    setup = set_up(DoctorSettings, given_options(namespace, "patient"))
    logs.configure(setup.settings.log_level, setup.settings.log_format)
    sums = asyncio.run(_examine(setup, namespace.patient))
    if isinstance(sums, int):
        say("interrupted")
        return sums
    if setup.settings.as_json:
        print(json.dumps({"report": sums._asdict()}))
    say(f"{counted(sums.problem, 'problem')}, {sums.ok} ok, {sums.skipped} skipped")
    return 1 if sums.problem else 0


async def _examine(setup: Setup[DoctorSettings], patient: str | None) -> Sums | int:
    settings = setup.settings
    told = partial(_print, "check") if settings.as_json else _say_check
    status = 0

    def interrupt(exit_status: int) -> None:
        nonlocal status
        status = exit_status
        task.cancel()

    if settings.as_json:
        for setting in setup.every:
            _print("setting", setting)
    else:
        _say_settings(setup.every)
    with heeding_signals(interrupt):
        task = asyncio.create_task(
            examine(
                setup,
                settings.out,
                patient=patient,
                metrics_file=settings.metrics_file,
                metrics_address=settings.metrics_port,
                told=told,
            )
        )
        try:
            return await task
        except asyncio.CancelledError:
            if not status:
                raise
            return status


def _print(kind: str, record: Setting | Check) -> None:
    told = {key: logs.redact(text) for key, text in record._asdict().items()}
    print(json.dumps({kind: told}), flush=True)


def _say_check(check: Check) -> None:
    state = "PROBLEM" if check.state is State.problem else check.state
    _say(f"{state:<8} {check.name:<{_NAME_WIDTH}} {check.detail}")
    if check.advice:
        _say(f"{_INDENT}what to do: {check.advice}")


def _say_settings(settings: Sequence[Setting]) -> None:
    say("settings in force, and where each comes from:")
    by_default, not_set, wrong = [], [], []
    for setting in settings:
        given = f"{setting.name} {setting.value}"
        if setting.wrong:
            wrong.append(f"{given}  ({setting.source})")
        elif setting.source != BY_DEFAULT:
            _say(f"  {given}  ({setting.source})")
        elif setting.value:
            by_default.append(given)
        else:
            not_set.append(setting.name)
    for what, listed in (("by default", by_default), ("not set", not_set)):
        words = f"{what}: {', '.join(listed)}"
        say(textwrap.fill(words, _WIDTH, initial_indent="  ", subsequent_indent="    "))
    if wrong:
        say("wrong, and left aside for what is by default (see below):")
    for words in wrong:
        _say(f"  {words}")
    say("")


def _say(text: str) -> None:
    say(logs.plain(logs.redact(text)))
