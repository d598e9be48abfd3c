"""What holds for every manifest: what was written comes back, and no bytes make a traceback."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any, Literal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bulkfetch.errors import ManifestError
from bulkfetch.manifest import Manifest, ManifestFormat
from bulkfetch.models import ManifestRow

SETTINGS = settings(max_examples=100, deadline=None)

INVISIBLE: list[CategoryName] = ["Cc", "Cf", "Cs", "Zl", "Zp", "Zs"]
SURROGATES: list[CategoryName] = ["Cs"]
CategoryName = Literal["Cc", "Cf", "Cs", "Zl", "Zp", "Zs"]
ids = st.text(
    st.one_of(
        st.characters(exclude_categories=INVISIBLE),
        st.sampled_from(' ",;#[]{}\\'),
    ),
    min_size=1,
    max_size=20,
).filter(lambda text: text == text.strip(" "))
some_id = st.one_of(st.none(), ids)
keys = st.tuples(some_id, some_id).filter(any)
cell = st.text(st.characters(exclude_characters="\0", exclude_categories=SURROGATES), max_size=20)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=SURROGATES)),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cell, inner, max_size=3),
    max_leaves=8,
)


def read(content: bytes, form: ManifestFormat) -> list[ManifestRow]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "m")
        path.write_bytes(content)
        with Manifest(path, form) as manifest:
            manifest.check()
            return list(manifest.rows())


def packed(text: str, *, bom: bool, zipped: bool) -> bytes:
    content = text.encode("utf-8-sig" if bom else "utf-8")
    return gzip.compress(content, 1) if zipped else content


def distinct(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    firsts: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for row in rows:
        firsts.setdefault(row[:2], row)
    return list(firsts.values())


@SETTINGS
@given(
    rows=st.lists(st.tuples(keys, cell), min_size=1, max_size=8),
    form=st.sampled_from([ManifestFormat.csv, ManifestFormat.tsv]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    bom=st.booleans(),
    zipped=st.booleans(),
)
@example(
    rows=[((None, "0"), "\x1f\x1f\x1f\x0b\x1f"), ((None, "1"), "\x1f\x1f\x1f\x0b\x08")],
    form=ManifestFormat.csv,
    end="\n",
    quoting=csv.QUOTE_MINIMAL,
    bom=False,
    zipped=False,
)
def test_a_table_that_csv_wrote_comes_back(
    *, rows: list[Any], form: ManifestFormat, end: str, quoting: Any, bom: bool, zipped: bool
) -> None:
    flat = [(patient, coverage, note) for (patient, coverage), note in rows]
    buffer = io.StringIO(newline="")
    delimiter = "," if form is ManifestFormat.csv else "\t"
    # Python before 3.13 quotes no CR where the line's end is LF, and no reader takes that.
    needs_all = end == "\n" and any("\r" in note for *_, note in flat)
    writer = csv.writer(
        buffer,
        delimiter=delimiter,
        lineterminator=end,
        quoting=csv.QUOTE_ALL if needs_all else quoting,
    )
    writer.writerows([("patient_id", "coverage_id", "note"), *flat])
    found = read(packed(buffer.getvalue(), bom=bom, zipped=zipped), form)
    assert [(*row.key, row.extra["note"]) for row in found] == distinct(flat)


@SETTINGS
@given(
    rows=st.lists(st.tuples(keys, json_values), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
    zipped=st.booleans(),
)
def test_objects_that_json_wrote_come_back(
    rows: list[Any], end: str, ascii_only: bool, bom: bool, zipped: bool
) -> None:
    flat = [(patient, coverage, value) for (patient, coverage), value in rows]
    text = "".join(
        json.dumps(
            {"patient_id": patient, "coverage_id": coverage, "value": value},
            ensure_ascii=ascii_only,
        )
        + end
        for patient, coverage, value in flat
    )
    found = read(packed(text, bom=bom, zipped=zipped), ManifestFormat.jsonl)
    assert [(*row.key, row.extra["value"]) for row in found] == distinct(flat)


@SETTINGS
@given(
    patients=st.lists(
        ids.filter(
            lambda text: (
                not text.startswith("#")
                and " #" not in text
                and text.partition(",")[0] not in ("patient_id", "coverage_id")
            )
        ),
        min_size=1,
    ),
    end=st.sampled_from(["\n", "\r\n", "\n# a comment\n\n"]),
    bom=st.booleans(),
    zipped=st.booleans(),
)
def test_ids_one_a_line_come_back(patients: list[str], end: str, bom: bool, zipped: bool) -> None:
    content = packed(end.join(patients), bom=bom, zipped=zipped)
    found = read(content, ManifestFormat.txt)
    assert [row.patient_id for row in found] == list(dict.fromkeys(patients))


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from([b"", b"patient_id,x\n", b"\xef\xbb\xbf", b'{"patient_id": "p"}\n']),
    content=st.binary(max_size=200)
    | st.text('{}[]:,"\\u0d8pN#\r\n\t \0\ufeffé').map(lambda text: text.encode()),
    form=st.sampled_from([form for form in ManifestFormat if form is not ManifestFormat.parquet]),
    zipped=st.booleans(),
)
@example(start=b"\x1f\x8b", content=b"", form=ManifestFormat.csv, zipped=False)
@example(start=b"\x1f\x8b\x08", content=b"\0" * 99, form=ManifestFormat.txt, zipped=False)
def test_arbitrary_bytes_raise_nothing_but_a_manifest_error(
    start: bytes, content: bytes, form: ManifestFormat, zipped: bool
) -> None:
    whole = start + content
    try:
        rows = read(gzip.compress(whole, 1) if zipped else whole, form)
    except ManifestError as error:
        assert str(error)  # noqa: PT017  # an error is one of two good ends
        return
    for row in rows:
        assert row.patient_id or row.coverage_id
        for identity in row.key:
            assert identity is None or 0 < len(identity) <= 1024
            assert not {unicodedata.category(c) for c in (identity or "") if c != " "} & {
                *INVISIBLE
            }
        json.dumps(row.extra, allow_nan=False, ensure_ascii=False).encode()
