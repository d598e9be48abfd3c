"""Manifests written, in every form that is read."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

from bulkfetch.errors import ManifestError
from bulkfetch.manifest.forms import PATIENT_ID
from bulkfetch.manifest.source import ManifestFormat, told_form
from bulkfetch.models import json_text

GZIP_ENDING = ".gz"
ROWS_AT_ONCE = 1_000

Cells: TypeAlias = Mapping[str, Any]
"""A row's cells by column; one that is missing or None is an empty cell."""


class Sink(Protocol):
    """Where the bytes go: a file that is open, say."""

    def write(self, data: bytes, /) -> object:
        """Write all of it."""

    def flush(self) -> object:
        """Pass on what was written."""


class Writer(Protocol):
    """Takes the rows of a manifest as they come."""

    def write(self, rows: Iterable[Cells]) -> None:
        """Write rows after those before; what is no text is written as JSON."""


def form_of(path: str, given: ManifestFormat | None = None) -> ManifestFormat:
    """Return the form that a manifest of this name is to have, `given` or told by its ending.

    Raises:
        ManifestError: the ending tells no form.
    """
    return given or told_form(path)


@contextmanager
def writing(
    file: Sink, form: ManifestFormat, columns: Sequence[str], *, compress: bool
) -> Iterator[Writer]:
    """Yield what writes a manifest with these columns to a file, which stays open.

    A row is passed on at once, but for those of Parquet, and what gzip keeps. The same rows are the
    same bytes.

    Raises:
        ManifestError: the form is Parquet, and pyarrow is not installed.
    """
    if form is ManifestFormat.parquet:
        with closing(_Parquet(file, columns)) as writer:
            yield writer
    elif compress:
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            yield _Text(packed, form, columns)
    else:
        yield _Text(file, form, columns)


class _Text:
    """Writes rows as text."""

    def __init__(self, file: Sink, form: ManifestFormat, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = columns
        self._encode = _ENCODERS[form]
        if form in (ManifestFormat.csv, ManifestFormat.tsv):
            self.write([dict(zip(columns, columns, strict=True))])

    def write(self, rows: Iterable[Cells]) -> None:
        for batch in _batches(rows):
            self._file.write(self._encode(batch, self._columns).encode())


def _table(rows: Iterable[Cells], columns: Sequence[str], delimiter: str) -> str:
    text = io.StringIO(newline="")
    lines = ([_cell(row.get(name)) or "" for name in columns] for row in rows)
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _ids(rows: Iterable[Cells], _columns: Sequence[str]) -> str:
    return "".join(f"{row[PATIENT_ID]}\n" for row in rows)


def _objects(rows: Iterable[Cells], _columns: Sequence[str]) -> str:
    return "".join(
        json_text({name: cell for name, cell in row.items() if cell is not None}) + "\n"
        for row in rows
    )


_ENCODERS: Mapping[ManifestFormat, Callable[[Iterable[Cells], Sequence[str]], str]] = {
    ManifestFormat.csv: partial(_table, delimiter=","),
    ManifestFormat.tsv: partial(_table, delimiter="\t"),
    ManifestFormat.txt: _ids,
    ManifestFormat.jsonl: _objects,
}


class _Parquet:
    """Writes rows as Parquet, every column as strings."""

    def __init__(self, file: Sink, columns: Sequence[str]) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415  # 50 MB that most users do not have
            from pyarrow import parquet  # noqa: PLC0415  # the same
        except ImportError as error:
            raise ManifestError(
                "Parquet needs pyarrow: pip install 'bulkfetch[parquet]'"
            ) from error
        self._columns = columns
        schema = pa.schema([(name, pa.string()) for name in columns])
        self._table = partial(pa.Table.from_pylist, schema=schema)
        self._writer = parquet.ParquetWriter(file, schema)

    def write(self, rows: Iterable[Cells]) -> None:
        for batch in _batches(rows):
            texts = [{name: _cell(row.get(name)) for name in self._columns} for row in batch]
            self._writer.write_table(self._table(texts))

    def close(self) -> None:
        self._writer.close()


def _batches(rows: Iterable[Cells]) -> Iterator[list[Cells]]:
    left = iter(rows)
    while batch := list(itertools.islice(left, ROWS_AT_ONCE)):
        yield batch


def _cell(cell: object) -> str | None:
    return cell if isinstance(cell, str | None) else json_text(cell)
