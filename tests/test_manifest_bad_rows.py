"""Each bad manifest is refused with words that name the file, the line, and what to do."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bulkfetch.errors import ManifestError
from bulkfetch.manifest import Manifest, ManifestFormat

Refused = Callable[..., ManifestError]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Checks a manifest with this content, and returns the error that it must raise."""
    monkeypatch.chdir(tmp_path)  # for messages with short names

    def refused(name: str, content: str | bytes) -> ManifestError:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        with Manifest(name) as manifest, pytest.raises(ManifestError) as caught:
            manifest.check()
        assert caught.value.exit_status == 2
        return caught.value

    return refused


def csv_with(row: str) -> str:
    return f"patient_id,coverage_id\np-1,\n{row}\np-3,\n"


BAD_ROWS = [
    # A table's shape.
    ("m.csv", csv_with("p-2"), 3, "has 1 cell, and the header 2 columns"),
    ("m.csv", csv_with("p-2,,x"), 3, "has 3 cells, and the header 2 columns"),
    ("m.tsv", csv_with("p-2,").replace(",", "\t").replace("p-2\t", "p-2"), 3, "has 1 cell"),
    ("m.csv", csv_with('"p-2"x,'), 3, "text follows a closing quote"),
    ("m.csv", csv_with("p-2,\rp-2,"), 3, "a carriage return stands alone"),
    ("m.csv", csv_with('"p-2,'), 3, "a quote is opened and never closed"),
    ("m.csv", csv_with(f"p-2,{'x' * 1_048_577}"), 3, "a cell is longer than 1,048,576 characters"),
    ("m.csv", csv_with('p-2,"' + "x\n" * 600_000), 3, "close the quote that is open"),
    ("m.csv", csv_with("x" * 16_777_300), 3, "longer than 16,777,216 bytes"),
    ("m.csv", csv_with('"' + '\n","' * 4_300_000 + '"'), 4_194_307, "longer than 16,777,216 bytes"),
    ("m.jsonl", '{"patient_id": "p"}\n"' + "x" * 16_777_300, 2, "longer than 16,777,216 bytes"),
    # The header.
    ("m.csv", "patient_id,a,b,a\np,,,\n", 1, "the column 'a' is there twice"),
    ("m.csv", "\npatient_id, patient_id\np,\n", 2, "the column 'patient_id' is there twice"),
    ("m.csv", "patient_id,\np,\n", 1, "column 2 has no name"),
    ("m.csv", "name,PatientID\nx,p\n", 1, "rename the column 'PatientID' to 'patient_id'"),
    ("m.csv", "patient id\np\n", 1, "rename the column 'patient id' to 'patient_id'"),
    ("m.csv", "PATIENT_ID\np\n", 1, "rename the column 'PATIENT_ID' to 'patient_id'"),
    ("m.csv", "mrn,Coverage-ID\np,c\n", 1, "rename the column 'mrn' to 'patient_id'"),
    ("m.csv", "Coverage-ID,x\nc,\n", 1, "rename the column 'Coverage-ID' to 'coverage_id'"),
    ("m.csv", "p-1,x\np-2,y\n", 1, "name the columns in the first line"),
    ("m.csv", "patient_id;name\np-1;x\n", 1, "separate cells with commas"),
    ("m.csv", "patient_id\tname\np-1\tx\n", 1, "--manifest-format tsv"),
    ("m.csv", b"patient_id,n\xe9\np-1,x\n", 1, "is not UTF-8 (byte 13 is 0xe9)"),
    ("m.csv", f"patient_id,{'n' * 1025}\np-1,x\n", 2, "name is longer than 1,024 characters"),
    ("m.csv", ",".join(["patient_id", *map(str, range(1100))]) + "\np" + "," * 1100, 2, "columns"),
    # IDs.
    ("m.csv", csv_with(" , "), 3, "neither a patient_id nor a coverage_id: give at least one"),
    ("m.csv", csv_with(f",{'c' * 1025}"), 3, "coverage_id is 1,025 characters long"),
    ("m.csv", csv_with("p\t2,"), 3, "patient_id holds U+0009 (a control character) as character 2"),
    ("m.csv", csv_with("p-2\t,"), 3, "U+0009"),
    ("m.csv", csv_with('"p\n2",'), 3, "U+000A"),
    ("m.csv", csv_with("p\x7f,"), 3, "U+007F"),
    ("m.csv", csv_with("p\x85,"), 3, "U+0085"),
    ("m.csv", csv_with(",c\u2028"), 3, "coverage_id holds U+2028 (LINE SEPARATOR)"),
    ("m.csv", csv_with("p\u2029,"), 3, "U+2029"),
    ("m.csv", csv_with("\u202ep,"), 3, "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
    ("m.csv", csv_with("p\u200b,"), 3, "U+200B (ZERO WIDTH SPACE)"),
    ("m.csv", csv_with("p\ufeff,"), 3, "U+FEFF"),
    ("m.csv", csv_with("p\xa0,"), 3, "U+00A0 (NO-BREAK SPACE)"),
    ("m.csv", csv_with("p\x002,"), 3, "holds a NUL byte"),
    # Encodings.
    ("m.csv", csv_with("p-2,\xe9").encode("latin-1"), 3, "is not UTF-8 (byte 5 is 0xe9)"),
    ("m.txt", b"p-1\n\xff\n", 2, "is not UTF-8"),
    ("m.txt", b"p-1\np\x002\n", 2, "holds a NUL byte"),
    ("m.jsonl", b'{"patient_id": "p"}\n{"patient_id": "\xc3"}\n', 2, "is not UTF-8"),
    ("m.jsonl", b'{"patient_id": "p"}\n{"patient_id": "\xed\xa0\x80"}\n', 2, "is not UTF-8"),
    # One ID a line.
    ("m.txt", "p-1\np-2 # moved\n", 2, "give it a line of its own"),
    ("m.txt", "patient_id\np-1\n", 1, "looks like a header"),
    ("m.txt", "p-1\n\tp-2\n", 2, "U+0009"),
    # JSON.
    *(
        ("m.jsonl", '{"patient_id": "p"}\n\n' + text + '\n{"patient_id": "q"}\n', 3, words)
        for text, words in [
            ('{"patient_id": 7}', "patient_id is a number, not a string"),
            ('{"patient_id": 7}', "leading zeros"),
            ('{"coverage_id": true}', "coverage_id is a boolean, not a string"),
            ('{"patient_id": ["p"]}', "patient_id is a list, not a string"),
            ('{"patient_id": {}}', "patient_id is an object, not a string"),
            ('["p"]', "is not a JSON object"),
            ("null", "is not a JSON object"),
            ('"p"', "is not a JSON object"),
            ("{patient_id: 1}", "is not JSON (Expecting property name"),
            ('{"patient_id": "p"} {}', "is not JSON (Extra data"),
            ('{"patient_id": "a\tb"}', "is not JSON (Invalid control character"),
            ('{"patient_id": "a\\tb"}', "U+0009"),
            ('{"patient_id": "p", "x": NaN}', "a number that JSON has not"),
            ('{"patient_id": "p", "x": -Infinity}', "a number that JSON has not"),
            ('{"patient_id": "p", "x": 1e999}', "a number that JSON has not"),
            ('{"patient_id": "p", "x": ' + "9" * 5000 + "}", "or one too large"),
            ('{"patient_id": "p\\ud800"}', "half of a surrogate pair"),
            ('{"patient_id": "p", "\\uDFFF": 1}', "half of a surrogate pair"),
            ('{"patient_id": "p", "x": ' + "[" * 100 + "]" * 100 + "}", "more than 100 deep"),
            ('{"x":' * 100_000, "more than 100 deep"),
            ("[" * 100_000 + "]" * 100_000, "more than 100 deep"),
            ("{}", "has neither a patient_id nor a coverage_id"),
            ('{"patientId": "p"}', "rename the column 'patientId' to 'patient_id'"),
        ]
    ),
    # Gzip.
    (
        "m.csv.gz",
        gzip.compress(b"patient_id\n" + b"p\n" * 9, mtime=0)[:-9],
        1,
        "the gzip data ends too early",
    ),
    (
        "m.csv.gz",
        gzip.compress(b"patient_id\n", mtime=0)[:-5] + b"xxxxx",
        1,
        "the gzip data is damaged",
    ),
    ("m.csv.gz", b"patient_id\np-1\n", 1, "is no gzip"),
    ("m.txt.gz", gzip.compress(b"p-1\n", mtime=0) + b"rubbish", 1, "the gzip data is damaged"),
]


@pytest.mark.parametrize(
    ("name", "content", "line", "words"), BAD_ROWS, ids=[f"{bad[0]}-{bad[3]}" for bad in BAD_ROWS]
)
def test_one_bad_row_is_named_by_file_line_and_words(
    refused: Refused, name: str, content: str | bytes, line: int, words: str
) -> None:
    (problem,) = refused(name, content).problems
    assert problem.startswith(f"{name}:{line}: ")
    assert words in problem
    assert problem.isprintable()


def test_depth_up_to_the_limit_is_good(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"patient_id": "p", "x": ' + "[" * 99 + "]" * 99 + ', "[[{": "[["}\n')
    with Manifest(path) as manifest:
        assert manifest.check().rows == 1


def test_every_bad_row_is_listed_in_order_and_the_good_between_are_not(refused: Refused) -> None:
    error = refused("m.csv", b'patient_id,n\n,\np,1\n"\n\n",1\np,2,3\nq,\xff\n"r"x,\ns,1\n')
    assert [problem.split(": ")[0] for problem in error.problems] == [
        "m.csv:2",
        "m.csv:4",
        "m.csv:7",
        "m.csv:8",
        "m.csv:9",
    ]
    assert str(error).startswith("m.csv has 5 bad rows, and nothing was fetched")


def test_of_many_bad_rows_the_first_hundred_are_listed_and_the_others_counted(
    refused: Refused,
) -> None:
    error = refused("m.csv", "patient_id\n" + "p,q\n" * 1_234)
    assert len(error.problems) == 101
    assert error.problems[99].startswith("m.csv:101: ")
    assert error.problems[100] == "and 1,134 more"


def test_what_cannot_be_read_to_its_end_has_the_bad_rows_before_listed_too(
    refused: Refused,
) -> None:
    error = refused("m.csv", 'patient_id\np,q\n"r')
    assert [problem.split(": ")[0] for problem in error.problems] == ["m.csv:2", "m.csv:3"]


def test_gzip_cut_in_the_middle_names_the_line_where_it_ends(refused: Refused) -> None:
    text = "patient_id\n" + "".join(f"p-{number * 7919 % 100_003}\n" for number in range(100_000))
    (problem,) = refused("m.csv.gz", gzip.compress(text.encode())[:-9_000]).problems
    assert 2 < int(problem.split(":")[1]) < 100_001
    assert "the gzip data ends too early" in problem


def test_names_in_messages_are_short_and_hold_nothing_invisible(refused: Refused) -> None:
    (problem,) = refused("m.csv", "\x1b[2J" + "x" * 500 + ",patient_id,patient_id\n").problems
    assert problem.isprintable()
    name = "\u202e" + "x" * 500
    (problem,) = refused("m.csv", f"patient_id,{name},{name}\n").problems
    assert problem.isprintable()
    assert len(problem) < 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04\x14\x00\x06\x00" + bytes(200), "Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(200), "old Excel workbook"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + os.urandom(200), "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "PNG"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"PAR1\x15\x04\x15" + bytes(200), "--manifest-format parquet"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        (b"\xfd7zXZ\x00" + bytes(20), "xz"),
        ("patient_id\np-1\n".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        (b"\xfe\xff" + "patient_id\np-1\n".encode("utf-16-be"), "UTF-16 text"),
        ("patient_id\np-1\n".encode("utf-16-le"), "is not text"),
        (bytes(range(256)) * 20, "is not text"),
        (gzip.compress(b"patient_id\np-1\n", mtime=0), "let its name end in .gz"),
    ],
)
@pytest.mark.parametrize("name", ["m.csv", "m.txt", "m.jsonl", "m.tsv.gz"])
def test_what_is_no_text_is_one_sentence_and_not_a_hundred_bad_rows(
    refused: Refused, name: str, content: bytes, words: str
) -> None:
    error = refused(name, gzip.compress(content) if name.endswith("gz") else content)
    assert words in str(error)
    assert error.problems == ()


@pytest.mark.parametrize("name", ["m", "m.xlsx", "m.gz", "m.csv.bz2", "m.json", "csv"])
def test_an_ending_that_tells_nothing_names_those_that_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("patient_id\np-1\n")
    with pytest.raises(ManifestError, match=r"\.csv, \.tsv.*\.parquet.*--manifest-format"):
        Manifest(tmp_path / name)


def test_parquet_within_gzip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="decompress it first"):
        Manifest(tmp_path / "m.parquet.gz")


@pytest.mark.parametrize("form", [None, *ManifestFormat])
def test_a_file_that_cannot_be_opened_is_one_sentence(
    tmp_path: Path, form: ManifestFormat | None
) -> None:
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ManifestError, match=r"no\.csv: there is no such file"):
        Manifest(tmp_path / "no.csv", form)
    with pytest.raises(ManifestError, match=r"d\.csv is a directory"):
        Manifest(tmp_path / "d.csv", form)
    with pytest.raises(ManifestError, match=r"is no path"):
        Manifest("a\0b.csv", form)
    with pytest.raises(ManifestError, match=r"cannot be read \(File name too long\)"):
        Manifest("x" * 5000 + ".csv", form)


def test_a_file_that_may_not_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.csv"
    path.write_text("patient_id\np-1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):  # by the superuser, whom permissions do not stop

        def deny(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("bulkfetch.manifest.source.open", deny, raising=False)
    with pytest.raises(ManifestError, match=r"m\.csv may not be read"):
        Manifest(path)


def test_a_disk_that_fails_while_reading_is_an_error(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("gzip.GzipFile.readinto", fail, raising=False)
    monkeypatch.setattr("gzip.GzipFile.read", fail)
    (problem,) = refused("m.csv.gz", gzip.compress(b"patient_id\np\n")).problems
    assert problem.startswith("m.csv.gz:1: reading failed (Input/output error)")


def test_a_temporary_directory_that_is_full_is_an_error(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bulkfetch.manifest.index.PRAGMAS", ("temp_store = FILE", "max_page_count = 3")
    )
    error = refused("m.txt", "".join(f"patient-{number}\n" for number in range(10_000)))
    assert "database or disk is full" in str(error)
    assert "TMPDIR" in str(error)
