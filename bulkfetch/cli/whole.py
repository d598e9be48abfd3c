"""The whole command line as one parser, for what describes it: completion, and the manual page."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping

import shtab

from bulkfetch.cli import COMMANDS, DESCRIPTION

# By what an argument's placeholder says that it is.
_FILES = {
    "MANIFEST": shtab.FILE,
    "FILE": shtab.FILE,
    "DEST": shtab.DIRECTORY,
    "DIR": shtab.DIRECTORY,
}


def whole_command_line(*, brief: bool = False) -> argparse.ArgumentParser:
    """Return a parser of every command, which knows what each option may be; none to parse with.

    With `brief`, commands are described in a line each.
    """
    root = argparse.ArgumentParser(
        "bulkfetch", usage="bulkfetch COMMAND [OPTIONS]", description=DESCRIPTION
    )
    root.add_argument("--version", action="store_true", help="show the version and exit")
    _add_commands(root, "bulkfetch.cli", COMMANDS, brief=brief)
    return root


def _add_commands(
    parser: argparse.ArgumentParser, package: str, commands: Mapping[str, str], *, brief: bool
) -> None:
    below = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, what in commands.items():
        module = importlib.import_module(f"{package}.{name}")
        own = module.command_line()
        further: Mapping[str, str] = getattr(module, "COMMANDS", {})
        made = below.add_parser(
            name,
            help=what,
            usage=own.usage.replace("%(prog)s", own.prog),
            description=what if brief else own.description,
            epilog=own.epilog,
            formatter_class=own.formatter_class,
            # A command of commands takes nothing but the name of one.
            parents=[] if further else [own],
            add_help=bool(further),
        )
        for action in made._actions:  # noqa: SLF001  argparse tells them nowhere else
            if words := own.words.get(action.dest):
                action.choices = list(words)
            elif kind := _FILES.get(str(action.metavar)):
                vars(action)["complete"] = kind  # where shtab looks
        if further:
            _add_commands(made, module.__name__, further, brief=brief)
