"""How people are told a number of things, and the name that they nearly wrote."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence

# Of 1 for the same word: less, and two options are alike for their dashes.
_ALIKE = 0.7


def counted(number: int, thing: str) -> str:
    """Return a number of things, such as `1 image`, `1,234 images` or `2 queries`."""
    return f"{number:,} {thing if number == 1 else _plural(thing)}"


def filters_text(filters: Mapping[str, Sequence[str]]) -> str:
    """Return the options that said which images were wanted, as a command line has them."""
    options = (
        f"--{name.replace('_', '-')} {shlex.quote(value)}"
        for name, values in filters.items()
        for value in values
    )
    return " ".join(options) or "filters that are not recorded"


def did_you_mean(names: Iterable[str], *words: str) -> str:
    """Return `; did you mean NAME?` with the name most like each word, "" where none is like it."""
    known = sorted(names)
    likely = [name for word in words for name in difflib.get_close_matches(word, known, 1, _ALIKE)]
    return f"; did you mean {', '.join(likely)}?" if likely else ""


def _plural(thing: str) -> str:
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return f"{thing[:-1]}ies"
    return f"{thing}es" if thing.endswith("s") else f"{thing}s"
