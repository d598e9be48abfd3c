"""The two passes over a manifest: the first checks every row, the second hands them out.

Nothing is fetched from a manifest with a bad row, so the whole of it is read before its first row
is used. To keep its rows in memory meanwhile would make memory grow with it; it is read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bulkfetch.errors import ManifestError
from bulkfetch.manifest import forms, parquet
from bulkfetch.manifest.checks import CheckedRow, Columns, checked
from bulkfetch.manifest.forms import Row
from bulkfetch.manifest.index import Index
from bulkfetch.manifest.source import ManifestFormat, Source, StopReadingError
from bulkfetch.models import ManifestRow, Shard
from bulkfetch.words import counted

MAX_PROBLEMS = 100  # a screenful or three; who has more has one cause, and sees it
MAX_EXAMPLES = 5
ROWS_PER_LOOK = 1_000  # rows between two looks at the file's size and time: 1 µs each


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """What the first pass found in a manifest without a bad row.

    `rows` is the sum of `distinct` and `duplicates`. `duplicate_examples` has up to five, such as
    "patients.csv:17 repeats line 3 (patient p-1)". `columns` are the names of all the columns
    carried along, in order of first appearance, without the `bulkfetch_*` ones.
    """

    rows: int
    distinct: int
    duplicates: int
    duplicate_examples: tuple[str, ...]
    columns: tuple[str, ...]


class Manifest:
    """A manifest, opened once and read twice; a context manager.

    Use: `check()` once, then `rows()`. One caller at a time, in any thread.

    Args:
        source: a path, or "-" for standard input, which is first copied to a private temporary
            file, as is a pipe.
        format: the form; None has it told by the ending, and makes standard input CSV.
        allow_empty: whether a manifest without any row is a good one.
        shard: the share of the rows to be counted and handed out; all are checked.

    Attributes:
        name: the path as given, or "<standard input>".
        sha256: of the file's bytes as they are, in hex; None before `check()`.

    Raises:
        ManifestError: the file is missing or cannot be read, or its ending tells no form.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        format: ManifestFormat | None = None,  # noqa: A002  # the option's name
        *,
        allow_empty: bool = False,
        shard: Shard | None = None,
    ) -> None:
        self._source = Source(source, format)
        self.name = self._source.name
        self._allow_empty = allow_empty
        self._shard = shard
        self._is_empty = True
        self._index: Index | None = None
        self._count = 0
        self.sha256: str | None = None

    def check(self) -> ManifestFacts:
        """Reads and validates every row, and returns what was found.

        Raises:
            ManifestError: the file is not what its form says; or rows are bad, of which the first
                100 are listed; or there is no row at all; or the file changed meanwhile.
        """
        self._forget()
        problems = Problems(self.name)
        columns = Columns()
        with ExitStack() as undo:
            index = Index()
            undo.callback(index.close)
            count = index.fill(
                (line, patient_id, coverage_id)
                for line, patient_id, coverage_id, _ in self._checked(columns, problems.add)
            )
            self._source.raise_if_changed()
            problems.raise_if_any()
            if self._is_empty and not self._allow_empty:
                raise ManifestError(
                    f"{self.name} has no rows, so nothing is to be fetched: correct it, or give "
                    "--allow-empty if that may be"
                )
            duplicates = index.find_repeats()
            examples = tuple(
                f"{self.name}:{line} repeats line {first} "
                f"({ManifestRow(line=line, patient_id=patient, coverage_id=coverage).label})"
                for line, first, patient, coverage in index.repeats(limit=MAX_EXAMPLES)
            )
            undo.pop_all()
        self._index, self._count = index, count
        self.sha256 = self._source.sha256()
        return ManifestFacts(
            rows=count,
            distinct=count - duplicates,
            duplicates=duplicates,
            duplicate_examples=examples,
            columns=columns.carried,
        )

    def rows(self) -> Iterator[ManifestRow]:
        """Yields each distinct row once, at its first occurrence, in the manifest's order.

        Each call reads from the start, so one iterator at a time. To be called after `check()`.

        Raises:
            ManifestError: the file changed after `check()`; looked for before the first row, then
                every 1,000 rows, and after the last.
        """
        if self._index is None:
            raise RuntimeError("check() comes before rows()")
        self._source.raise_if_changed()
        repeats = self._index.repeats()
        repeat, *_ = next(repeats, (0,))
        count = 0
        for line, patient_id, coverage_id, extra in self._checked(Columns(), self._differs):
            count += 1
            if count % ROWS_PER_LOOK == 0:
                self._source.raise_if_changed()
            if line == repeat:
                repeat, *_ = next(repeats, (0,))
                continue
            # Validated a second time by the model: measured faster than `model_construct`.
            yield ManifestRow(
                line=line, patient_id=patient_id, coverage_id=coverage_id, extra=extra
            )
        self._source.raise_if_changed()
        if count != self._count:
            raise self._source.changed()

    def close(self) -> None:
        """Closes the file and removes the index; may be called twice."""
        self._forget()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _forget(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def _read(self) -> Iterator[Row]:
        form = self._source.form
        if form is ManifestFormat.parquet:
            return parquet.rows(self._source)
        return forms.READERS[form](self._source.lines())

    def _checked(
        self, columns: Columns, report: Callable[[int, str], None]
    ) -> Iterator[CheckedRow]:
        shard = self._shard
        try:
            for row in checked(self._read(), columns, report):
                self._is_empty = False
                if shard is None or shard.holds(row[1], row[2]):
                    yield row
        except StopReadingError as stop:
            report(stop.line, stop.what)

    def _differs(self, line: int, what: str) -> None:
        """The second pass met a bad row where the first met none."""
        self._source.raise_if_changed()
        raise self._source.changed(f"line {line} {what}")


class Problems:
    """The bad rows of one pass: the first 100 as text, the others as a number."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: list[str] = []
        self._count = 0

    def add(self, line: int, what: str) -> None:
        """Take what is wrong with a line."""
        self._count += 1
        if self._count <= MAX_PROBLEMS:
            self._lines.append(f"{self._name}:{line}: {what}")

    def raise_if_any(self) -> None:
        """Raise `ManifestError` with all of them."""
        if not self._count:
            return
        more = self._count - len(self._lines)
        raise ManifestError(
            f"{self._name} has {counted(self._count, 'bad row')}, and nothing was fetched; "
            "correct it and run again:",
            [*self._lines, *([f"and {more:,} more"] if more else [])],
        )
