"""Command lines read, and what is wrong with one told with the name that was likely meant."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from bulkfetch.words import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser whose help is laid out by hand, and that knows which option or command was meant."""

    def __init__(self, *, prog: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(  # type: ignore[override]  # no caller brings a namespace of another type
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return what is given, or end with status 2 and what is wrong.

        Of an option that there is not, no value is shown: it may be a secret.
        """
        given, unknown = self.parse_known_args(args, namespace)
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if options:
            hint = did_you_mean(self._option_string_actions, options[0])
            self.error(f"no such option: {options[0]}{hint}")
        if unknown:
            self.error(f"more is given than it takes: {' '.join(unknown)}")
        return given

    def refuse_unknown(self, command: str, commands: Collection[str]) -> None:
        """End with status 2 unless the command is one of these."""
        if command not in commands:
            hint = did_you_mean(commands, command) or f"; there are {', '.join(commands)}"
            self.error(f"no such command: {command}{hint}")
