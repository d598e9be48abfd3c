"""What makes a row good, whatever the form it came in."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from bulkfetch.manifest.forms import (
    COVERAGE_ID,
    ID_COLUMNS,
    PATIENT_ID,
    Row,
    rename_hint,
    shown,
)
from bulkfetch.manifest.source import StopReadingError

CheckedRow: TypeAlias = tuple[int, str | None, str | None, dict[str, Any]]
"""Line, patient ID, coverage ID, and the columns that are carried along."""

MAX_ID = 1024  # characters; the longest that API, file names and people can still handle
MAX_COLUMNS = 1024  # with the next, what bounds the memory that names of columns take
MAX_COLUMN_NAME = 1024  # characters
IGNORED_PREFIX = "bulkfetch_"  # columns that a failures file adds

# Control, format (bidirectional marks, zero-width), lone surrogate, and every space but " ".
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})

JSON_KINDS = {bool: "a boolean", int: "a number", float: "a number", list: "a list"}


class BadIDError(Exception):
    """A cell is no ID; its text says why, and what to do."""


class Columns:
    """The names of the columns met so far, in order of first appearance."""

    def __init__(self) -> None:
        self.known = set(ID_COLUMNS)
        self.ignored: list[str] = []
        self._carried: list[str] = []

    @property
    def carried(self) -> tuple[str, ...]:
        """All but the two of the IDs and those ignored."""
        return tuple(self._carried)

    def learn(self, line: int, names: Iterable[str]) -> None:
        """Adds the names not yet known.

        Raises:
            StopReadingError: a name is too long, or there are too many.
        """
        for name in names:
            if name in self.known:
                continue
            if len(name) > MAX_COLUMN_NAME:
                raise StopReadingError(
                    line, f"a column's name is longer than {MAX_COLUMN_NAME:,} characters"
                )
            if len(self.known) >= MAX_COLUMNS:
                raise StopReadingError(
                    line, f"more than {MAX_COLUMNS:,} different columns: carry fewer along"
                )
            self.known.add(name)
            (self.ignored if name.startswith(IGNORED_PREFIX) else self._carried).append(name)


def checked(
    rows: Iterable[Row], columns: Columns, report: Callable[[int, str], None]
) -> Iterator[CheckedRow]:
    """Yields the good rows, and gives line and words of each bad one to `report`."""
    for line, cells in rows:
        if isinstance(cells, str):
            report(line, cells)
            continue
        if not cells.keys() <= columns.known:
            columns.learn(line, cells)
        for name in columns.ignored:
            cells.pop(name, None)
        try:
            patient_id = _identity(PATIENT_ID, cells.pop(PATIENT_ID, None))
            coverage_id = _identity(COVERAGE_ID, cells.pop(COVERAGE_ID, None))
        except BadIDError as error:
            report(line, str(error))
            continue
        if patient_id is None and coverage_id is None:
            hint = rename_hint(cells) or "give at least one of them"
            report(line, f"has neither a patient_id nor a coverage_id: {hint}")
            continue
        yield line, patient_id, coverage_id, cells


def _identity(column: str, value: object) -> str | None:
    """The ID without the blanks around it, or None where there is none; BadIDError if it is bad."""
    if value is None:
        return None
    if not isinstance(value, str):
        kind = JSON_KINDS.get(type(value), "an object")
        raise BadIDError(
            f"{column} is {kind}, not a string: write it in quotes, with its leading zeros if it "
            "has any, since they cannot be guessed"
        )
    value = value.strip(" ")
    if len(value) > MAX_ID:
        raise BadIDError(
            f"{column} is {len(value):,} characters long, and at most {MAX_ID:,} are possible: "
            f"correct it ({shown(value)})"
        )
    if not value.isprintable():  # which unassigned and private characters are not either
        for place, character in enumerate(value, 1):
            if character != " " and unicodedata.category(character) in INVISIBLE:
                name = unicodedata.name(character, "a control character")
                raise BadIDError(
                    f"{column} holds U+{ord(character):04X} ({name}) as character {place}: "
                    "remove it, since an ID has no invisible characters"
                )
    return value or None
