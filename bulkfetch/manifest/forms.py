"""How each form of text becomes rows: one function per form, and no opinion on what is in them.

Every reader yields `Row`s, and raises `StopReadingError` where the rest cannot be read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import isfinite
from typing import Any, TypeAlias

from bulkfetch.manifest.source import Lines, ManifestFormat, StopReadingError
from bulkfetch.words import counted

PATIENT_ID = "patient_id"
COVERAGE_ID = "coverage_id"
ID_COLUMNS = (PATIENT_ID, COVERAGE_ID)

Row: TypeAlias = tuple[int, dict[str, Any] | str]
"""The row's first line, and its cells by column; or instead of cells, why they cannot be read."""

MAX_CELL = 1024 * 1024  # characters; a longer one is a quote never closed, or no table
MAX_DEPTH = 100  # of JSON within JSON: what later writes it out again has its own limit above
TOO_DEEP = f"is nested more than {MAX_DEPTH} deep: make it flatter"

LIKELY_NAMES = {
    PATIENT_ID: ("patientid", "patient", "patientidentifier", "externalpatientid", "ptid", "mrn"),
    COVERAGE_ID: ("coverageid", "coverage", "coverageidentifier"),
}


def txt_rows(lines: Lines) -> Iterator[Row]:
    """One patient ID a line; blank lines, and lines that begin with `#`, are none."""
    for text in lines:
        patient_id = text.removesuffix("\n").removesuffix("\r").strip(" ")
        if fault := lines.end_row():
            yield lines.number, fault
        elif not patient_id or patient_id.startswith("#"):
            continue
        elif " #" in patient_id:
            yield lines.number, "a comment follows the ID: give it a line of its own"
        elif patient_id.partition(",")[0] in ID_COLUMNS:
            yield lines.number, "looks like a header: name the file .csv, or --manifest-format csv"
        else:
            yield lines.number, {PATIENT_ID: patient_id}


def csv_rows(lines: Lines, delimiter: str) -> Iterator[Row]:
    """A table with a header; a cell in quotes may hold delimiters, doubled quotes and new lines.

    Sets the process's limit on a cell's length (`csv.field_size_limit`) to `MAX_CELL`.
    """
    csv.field_size_limit(MAX_CELL)
    names: list[str] = []
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = lines.number + 1
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fault: str | None = _csv_fault(first, lines)
            lines.end_row()
        else:
            fault = lines.end_row()
        if fault and not names:
            raise StopReadingError(first, fault)  # no row can be read without a header
        if fault:
            yield first, fault
        elif not cells or (len(cells) == 1 and not cells[0].strip(" ")):
            continue
        elif not names:
            names = header(first, cells)
        elif len(cells) != len(names):
            what = (
                f"has {counted(len(cells), 'cell')}, "
                f"and the header {counted(len(names), 'column')}: add or remove cells, "
                "and put quotes around one that holds the delimiter"
            )
            yield first, what
        else:
            yield first, dict(zip(names, cells, strict=True))


def jsonl_rows(lines: Lines) -> Iterator[Row]:
    r"""One JSON object a line; of a key given twice the last counts; NaN and Infinity are no JSON.

    Lone surrogates (a `\ud800` without its other half) are bad, since no file can hold them.
    """
    for text in lines:
        if fault := lines.end_row():
            yield lines.number, fault
        elif not text.isspace():
            yield lines.number, _json_object(text)


READERS: Mapping[ManifestFormat, Callable[[Lines], Iterator[Row]]] = {
    ManifestFormat.csv: partial(csv_rows, delimiter=","),
    ManifestFormat.tsv: partial(csv_rows, delimiter="\t"),
    ManifestFormat.txt: txt_rows,
    ManifestFormat.jsonl: jsonl_rows,
}


def header(line: int, cells: Iterable[str]) -> list[str]:
    """The columns' names, without the blanks around them.

    Raises:
        StopReadingError: a name is empty or there twice, or none is that of an ID.
    """
    names = [cell.strip(" ") for cell in cells]
    met: set[str] = set()
    for place, name in enumerate(names, 1):
        if not name:
            raise StopReadingError(line, f"column {place} has no name: name it or remove it")
        if name in met:
            raise StopReadingError(
                line, f"the column {shown(name)} is there twice: rename or remove one"
            )
        met.add(name)
    if met.isdisjoint(ID_COLUMNS):
        hint = rename_hint(names) or "name the columns in the first line"
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|,"):
            hint = "separate cells with commas, or with tabs and --manifest-format tsv"
        raise StopReadingError(line, f"no column is named patient_id or coverage_id: {hint}")
    return names


def rename_hint(names: Iterable[str]) -> str | None:
    """What to rename where a name looks like that of an ID column; None where none does."""
    plain = {"".join(filter(str.isalnum, name)).casefold(): name for name in reversed([*names])}
    for column, likely in LIKELY_NAMES.items():
        for name in likely:
            if name in plain:
                return f"rename the column {shown(plain[name])} to '{column}'"
    return None


def shown(text: str) -> str:
    """Text of the manifest for a message: quoted, at most 60 characters, nothing invisible."""
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")


def _csv_fault(first: int, lines: Lines) -> str:
    """What is wrong with a row that the csv module refused; StopReadingError if it has no end."""
    if lines.ended:
        raise StopReadingError(
            first, "a quote is opened and never closed: close it, or double it within a cell"
        )
    if lines.row_bytes > MAX_CELL:
        raise StopReadingError(
            first,
            f"a cell is longer than {MAX_CELL:,} characters: shorten it, or close the quote that "
            "is open",
        )
    return (
        "text follows a closing quote, or a carriage return stands alone: double the quotes within "
        "a cell, and end lines with LF or CRLF"
    )


def _json_object(text: str) -> dict[str, Any] | str:
    """The object that the text holds, or why it is none."""
    try:
        value = _decode_json(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        fault = TOO_DEEP
    except UnicodeEncodeError:
        fault = "holds half of a surrogate pair (\\ud800 to \\udfff): correct it"
    except json.JSONDecodeError as error:
        fault = (
            f"is not JSON ({error.msg}, at character {error.colno}): write one whole object on "
            "each line"
        )
    except ValueError:  # NaN, Infinity, 1e999, an integer of thousands of digits
        fault = "holds a number that JSON has not, or one too large: write it as text"
    else:
        if not isinstance(value, dict):
            fault = 'is not a JSON object: write {"patient_id": "..."} on each line'
        elif text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            fault = TOO_DEEP
        else:
            return value
    return fault


def _finite(digits: str) -> float:
    number = float(digits)  # "NaN" and "Infinity" too, as the decoder hands them out
    if not isfinite(number):
        raise ValueError(digits)
    return number


_decode_json = json.JSONDecoder(parse_constant=_finite, parse_float=_finite).decode


def _depth(value: object) -> int:
    """How many lists and objects are one within another; without recursion."""
    depth, layer = 0, [value]
    while layer := [inner for inner in layer if isinstance(inner, dict | list)]:
        depth += 1
        layer = [
            item
            for inner in layer
            for item in (inner.values() if isinstance(inner, dict) else inner)
        ]
    return depth
