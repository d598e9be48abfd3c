"""Command lines read, and what is wrong with one told with the name that was likely meant."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Collection, Sequence
from typing import Never

from bulkfetch.words import did_you_mean

# As wide as a terminal is at least; argparse sees to the options itself.
_WIDTH = 80


class Parser(argparse.ArgumentParser):
    """A parser whose help is laid out by hand, and that knows which option or command was meant.

    Attributes:
        words: what an option may be, by its `dest`, where something else than this parser sees to
            that.
    """

    def __init__(self, *, prog: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=_filled(description),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.words: dict[str, Sequence[str]] = {}

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

    def error(self, message: str) -> Never:
        """End with status 2, what is wrong, and where it says what is right."""
        super().error(f"{message}\nsee: {self.prog} --help")

    def refuse_unknown(self, command: str, commands: Collection[str]) -> None:
        """End with status 2 unless the command is one of these."""
        if command not in commands:
            hint = did_you_mean(commands, command) or f"; there are {', '.join(commands)}"
            self.error(f"no such command: {command}{hint}")


def _filled(text: str) -> str:
    """Return a text whose paragraphs fill the width; what is indented stays as it is."""
    return "\n\n".join(
        paragraph
        if paragraph.startswith(" ")
        else textwrap.fill(paragraph, _WIDTH, break_on_hyphens=False, break_long_words=False)
        for paragraph in text.split("\n\n")
    )
