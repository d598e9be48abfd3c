"""Parquet manifests, read by pyarrow, which is imported only when one is."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bulkfetch.errors import ManifestError
from bulkfetch.manifest.forms import ID_COLUMNS, Row, header, shown
from bulkfetch.manifest.source import Source, StopReadingError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1024
BUFFER_BYTES = 64 * 1024  # of each column; else whole column chunks are read into memory


def rows(source: Source) -> Iterator[Row]:
    """The rows, numbered from 1, a thousand at a time.

    Cells of other columns become what JSON can hold: dates, times and decimals text (ISO 8601),
    durations seconds, binary Base64, NaN null. Timestamps keep their precision and offset.

    Raises:
        ManifestError: pyarrow is not installed, or this is no Parquet file.
        StopReadingError: the columns are not fit, or the file is damaged.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415  # 50 MB that most users do not have
        from pyarrow import parquet  # noqa: PLC0415  # the same
    except ImportError as error:
        raise ManifestError(
            f"{source.name}: Parquet needs pyarrow: pip install 'bulkfetch[parquet]'"
        ) from error

    source.file.seek(0)
    if source.file.read(4) != b"PAR1":
        raise ManifestError(
            f"{source.name} is not a Parquet file: let its name end in what it is, or correct "
            "--manifest-format"
        )
    line = 1
    try:
        with parquet.ParquetFile(source.file, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            names = header(line, file.schema_arrow.names)
            for name, kind in zip(names, file.schema_arrow.types, strict=True):
                if name in ID_COLUMNS and not _is_text(pa, kind):
                    raise StopReadingError(
                        line,
                        f"the column {name} holds {shown(str(kind))}, not strings: write it as "
                        "strings, with leading zeros, since they cannot be guessed",
                    )
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                columns = [_cells(pa, column) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    yield line, dict(zip(names, cells, strict=True))
                    line += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # Also UnicodeDecodeError, and dates beyond the year 9999 within lists.
        reason = shown(str(error).partition("\n")[0])
        raise StopReadingError(
            line, f"the Parquet data cannot be read from here on ({reason}): write it again"
        ) from error


def _is_text(pa: ModuleType, kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _cells(pa: ModuleType, column: pa.Array) -> list[Any]:
    """A column's values as JSON can hold them."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        # Arrow's text keeps nanoseconds and any year, which Python's own types do not.
        texts: list[str | None] = column.cast(pa.string()).to_pylist()
        return [text and text.replace(" ", "T") for text in texts]
    values: list[Any] = column.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return values
    return [_plain(value) for value in values]


def _plain(value: object) -> object:  # noqa: PLR0911  # one line for each kind
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)  # decimals, UUIDs
