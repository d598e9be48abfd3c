"""What `Manifest` promises of a good manifest: its rows, its facts, and how little it keeps."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bulkfetch.errors import ManifestError
from bulkfetch.manifest import Manifest, ManifestFacts, ManifestFormat
from bulkfetch.models import ManifestRow

Keys = list[tuple[int, str | None, str | None]]


def read(
    source: str | Path, form: ManifestFormat | None = None, *, allow_empty: bool = False
) -> tuple[ManifestFacts, list[ManifestRow]]:
    with Manifest(source, form, allow_empty=allow_empty) as manifest:
        return manifest.check(), list(manifest.rows())


def keys(rows: list[ManifestRow]) -> Keys:
    return [(row.line, row.patient_id, row.coverage_id) for row in rows]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


Write = Callable[[str, str | bytes], Path]

TABLE = "patient_id,coverage_id,name\np-1,c-1,Ann\n,c-2,\np-3,,Bo\n"
TABLE_KEYS: Keys = [(2, "p-1", "c-1"), (3, None, "c-2"), (4, "p-3", None)]
TABLE_EXTRA = [{"name": "Ann"}, {"name": ""}, {"name": "Bo"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", TABLE),
        ("M.CSV", TABLE),
        ("m.tsv", TABLE.replace(",", "\t")),
        ("m.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("m.TSV.gz", gzip.compress(TABLE.replace(",", "\t").encode(), mtime=0)),
        ("m.csv", "\ufeff" + TABLE),
        ("m.csv", TABLE.replace("\n", "\r\n")),
        ("m.csv.gz", gzip.compress(("\ufeff" + TABLE).encode(), mtime=0)),
    ],
)
def test_a_table_is_told_by_its_ending_with_or_without_bom_crlf_and_gzip(
    write: Write, name: str, content: str | bytes
) -> None:
    facts, rows = read(write(name, content))
    assert keys(rows) == TABLE_KEYS
    assert [row.extra for row in rows] == TABLE_EXTRA
    assert facts == ManifestFacts(3, 3, 0, (), ("name",))


@pytest.mark.parametrize("zipped", [False, True])
def test_an_explicit_form_tells_gzip_by_its_first_bytes_whatever_the_name(
    write: Write, zipped: bool
) -> None:
    content = gzip.compress(TABLE.encode()) if zipped else TABLE.encode()
    for name in ("export", "export.gz", "export.jsonl"):
        assert keys(read(write(name, content), ManifestFormat.csv)[1]) == TABLE_KEYS


def test_txt_is_one_patient_a_line_with_comments_and_blank_lines(write: Write) -> None:
    facts, rows = read(write("m.txt", "# all\n\n  p-1 \r\n \n#p-2\np 3#x\np-4"))
    assert keys(rows) == [(3, "p-1", None), (6, "p 3#x", None), (7, "p-4", None)]
    assert facts.columns == ()


def test_jsonl_carries_json_values_and_takes_null_and_blank_for_no_id(write: Write) -> None:
    text = (
        '{"patient_id": "p-1", "coverage_id": null, "n": 1, "bulkfetch_error": "x"}\n\n'
        ' {"a": [{"b": null}], "coverage_id": " c-2 ", "patient_id": "  "}\r\n'
        '{"patient_id": "lost", "patient_id": "p-3", "e": "\\ud83d\\ude00"}'
    )
    facts, rows = read(write("m.jsonl", text))
    assert keys(rows) == [(1, "p-1", None), (3, None, "c-2"), (4, "p-3", None)]
    assert [row.extra for row in rows] == [{"n": 1}, {"a": [{"b": None}]}, {"e": "😀"}]
    assert facts.columns == ("n", "a", "e")


def test_lines_of_rows_are_their_first_in_the_file_whatever_lies_between(write: Write) -> None:
    text = '\n"patient_id","note\n2"\n\np-1,"a\n\nb,""c"""\n   \np-2,\n'
    facts, rows = read(write("m.csv", text))
    assert keys(rows) == [(5, "p-1", None), (9, "p-2", None)]
    assert rows[0].extra == {"note\n2": 'a\n\nb,"c"'}
    assert facts.columns == ("note\n2",)


def test_blanks_around_ids_and_names_are_trimmed_and_those_in_other_cells_are_not(
    write: Write,
) -> None:
    _, rows = read(write("m.csv", " patient_id , note \n  p 1  , x \n"))
    assert keys(rows) == [(2, "p 1", None)]
    assert rows[0].extra == {"note": " x "}


def test_an_id_may_hold_any_visible_character_and_1024_of_them(write: Write) -> None:
    wanted = ["Ü/é", "患者", "😀", "a" * 1024, "../x", "\ue000"]
    _, rows = read(write("m.txt", "\n".join(wanted)))
    assert [row.patient_id for row in rows] == wanted


def test_a_failures_file_is_a_manifest_whose_own_columns_are_not_carried(write: Write) -> None:
    text = "patient_id,bulkfetch_error,site,bulkfetch_images\np-1,timeout,north,3\n"
    facts, rows = read(write("failures.csv", text))
    assert rows[0].extra == {"site": "north"}
    assert facts.columns == ("site",)


def test_the_same_ids_twice_are_read_once_counted_and_named(write: Write) -> None:
    text = (
        "patient_id,coverage_id,n\np-1,,a\np-1,c-1,b\n p-1 ,,c\np-2,,d\n,c-1,e\np-1,c-1,f\np-1,,g\n"
    )
    path = write("m.csv", text)
    facts, rows = read(path)
    assert [row.extra["n"] for row in rows] == ["a", "b", "d", "e"]
    assert (facts.rows, facts.distinct, facts.duplicates) == (7, 4, 3)
    assert facts.duplicate_examples == (
        f"{path}:4 repeats line 2 (patient p-1)",
        f"{path}:7 repeats line 3 (patient p-1, coverage c-1)",
        f"{path}:8 repeats line 2 (patient p-1)",
    )


def test_ids_that_differ_in_case_or_in_column_are_not_the_same(write: Write) -> None:
    facts, rows = read(write("m.csv", "patient_id,coverage_id\na,\nA,\n,a\n"))
    assert facts.duplicates == 0
    assert len(rows) == 3


def test_at_most_five_duplicates_are_named(write: Write) -> None:
    facts, rows = read(write("m.txt", "p\n" * 50))
    assert (facts.duplicates, len(facts.duplicate_examples), len(rows)) == (49, 5, 1)


def test_rows_can_be_read_again_from_the_start(write: Write) -> None:
    with Manifest(write("m.csv.gz", gzip.compress(TABLE.encode()))) as manifest:
        manifest.check()
        next(manifest.rows())
        assert keys(list(manifest.rows())) == TABLE_KEYS
        manifest.check()
        assert keys(list(manifest.rows())) == TABLE_KEYS


def test_rows_before_check_are_refused(write: Write) -> None:
    with Manifest(write("m.csv", TABLE)) as manifest, pytest.raises(RuntimeError, match="check"):
        next(manifest.rows())


def test_a_file_replaced_between_the_passes_is_not_noticed_since_the_handle_stays(
    write: Write,
) -> None:
    path = write("m.csv", TABLE)
    with Manifest(path) as manifest:
        manifest.check()
        write("new.csv", "patient_id\nother\n").replace(path)
        assert keys(list(manifest.rows())) == TABLE_KEYS


@pytest.mark.parametrize("now", [TABLE + "p-4,,\n", TABLE[:-4], "", TABLE.replace("p-1", "p-9")])
def test_a_file_written_between_the_passes_is_an_error_before_the_first_row(
    write: Write, now: str
) -> None:
    path = write("m.csv", TABLE)
    os.utime(path, ns=(0, 0))  # so that the writing below gives another time for certain
    with Manifest(path) as manifest:
        manifest.check()
        write("m.csv", now)
        with pytest.raises(ManifestError, match="the manifest changed while it was read"):
            next(manifest.rows())


@pytest.mark.parametrize("at", [1, 2_500, 5_000])
def test_a_file_written_while_its_rows_are_handed_out_is_an_error_soon(
    write: Write, at: int
) -> None:
    path = write("m.txt", "".join(f"p-{number}\n" for number in range(5_000)))
    with Manifest(path) as manifest:
        manifest.check()
        rows = manifest.rows()
        for _ in range(at):
            next(rows)
        with path.open("a") as file:
            file.write("p-new\n")
        with pytest.raises(ManifestError, match="changed while it was read"):
            at += sum(1 for _ in zip(range(1_001), rows, strict=False))


def test_a_file_whose_content_differs_at_the_same_size_and_time_is_an_error(write: Write) -> None:
    path = write("m.txt", "p-1\np-2\n")
    time = path.stat().st_mtime_ns
    with Manifest(path) as manifest:
        manifest.check()
        for content, words in (("p-1\np\x012\n", "line 2 patient_id holds"), ("p-12p-2\n", "")):
            write("m.txt", content)
            os.utime(path, ns=(time, time))
            with pytest.raises(ManifestError, match=f"changed while it was read.*{words}"):
                list(manifest.rows())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", ""),
        ("m.csv", "\ufeff"),
        ("m.csv", "\n \n"),
        ("m.csv", "patient_id,name\n"),
        ("m.txt", "# nobody today\n"),
        ("m.jsonl", "\n"),
        ("m.csv.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_no_rows_is_an_error_unless_that_is_allowed(write: Write, name: str, content: str) -> None:
    path = write(name, content)
    with pytest.raises(ManifestError, match=r"has no rows.*--allow-empty"):
        read(path)
    assert read(path, allow_empty=True) == (ManifestFacts(0, 0, 0, (), ()), [])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("form", [None, ManifestFormat.tsv])
def test_standard_input_is_csv_unless_told_and_is_read_twice(
    monkeypatch: pytest.MonkeyPatch, form: ManifestFormat | None, zipped: bool
) -> None:
    text = TABLE.replace(",", "\t") if form else TABLE
    content = gzip.compress(text.encode()) if zipped else text.encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    with Manifest("-", form) as manifest:
        assert manifest.name == "<standard input>"
        assert manifest.check().rows == 3
        assert keys(list(manifest.rows())) == TABLE_KEYS


def test_a_bad_row_of_standard_input_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"patient_id,x\np-1\n")))
    with Manifest("-") as manifest, pytest.raises(ManifestError, match="<standard input>:2: has 1"):
        manifest.check()


def test_standard_input_that_is_closed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ManifestError, match="<standard input> cannot be read"):
        Manifest("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_read_twice_as_well(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    script = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    with subprocess.Popen([sys.executable, "-c", script, str(pipe), TABLE]):
        assert keys(read(pipe)[1]) == TABLE_KEYS


def test_importing_changes_nothing_and_needs_no_pyarrow() -> None:
    script = (
        "import csv, sys; before = csv.field_size_limit(); import bulkfetch.manifest;"
        "assert csv.field_size_limit() == before; assert 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_closed_manifest_leaves_no_open_file_and_may_be_closed_again(write: Write) -> None:
    manifest = Manifest(write("m.csv", TABLE))
    manifest.check()
    manifest.close()
    manifest.close()
    with pytest.raises(ValueError, match="closed"):
        manifest.check()


def peak(path: Path) -> int:
    """The most bytes that Python held at once in both passes."""
    tracemalloc.start()
    try:
        with Manifest(path) as manifest:
            manifest.check()
            for _ in manifest.rows():
                pass
            return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def many(form: str, count: int, *, distinct: bool) -> Iterator[str]:
    if form in ("csv", "csv.gz"):
        yield "patient_id,name\n"
    for number in range(count):
        patient = f"p-{number if distinct else number % 7}"
        yield {
            "csv": f'{patient},"n {number}"\n',
            "csv.gz": f'{patient},"n {number}"\n',
            "txt": f"{patient}\n",
            "jsonl": f'{{"patient_id": "{patient}", "n": {number}}}\n',
        }[form]


@pytest.mark.parametrize(
    ("form", "distinct"),
    [("csv", True), ("csv.gz", True), ("txt", False), ("jsonl", True)],
)
def test_memory_does_not_grow_with_the_rows(write: Write, form: str, distinct: bool) -> None:
    def made(count: int) -> Path:
        text = "".join(many(form, count, distinct=distinct)).encode()
        return write(f"{count}.{form}", gzip.compress(text, 1) if form.endswith("gz") else text)

    peak(made(500))  # what is imported and cached once
    assert peak(made(40_000)) < peak(made(2_000)) + 100_000


def test_memory_does_not_grow_with_the_bad_rows(write: Write) -> None:
    def peak_of_bad(count: int) -> int:
        path = write(f"{count}.csv", "patient_id,n\n" + "p\n" * count)
        tracemalloc.start()
        try:
            with Manifest(path) as manifest, pytest.raises(ManifestError):
                manifest.check()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_of_bad(500)
    assert peak_of_bad(40_000) < peak_of_bad(2_000) + 100_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it there")
def test_the_process_does_not_grow_with_the_rows_either(write: Write) -> None:
    """What SQLite holds is seen by the system alone."""
    script = (
        "import re, sys; from bulkfetch.manifest import Manifest\n"
        "with Manifest(sys.argv[1]) as manifest: manifest.check()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )

    def peak_kib(count: int) -> int:
        path = write(f"{count}.txt", "".join(many("txt", count, distinct=True)))
        command = [sys.executable, "-c", script, str(path)]
        return int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)

    assert peak_kib(300_000) < peak_kib(10_000) * 1.1


def test_a_line_without_end_is_not_read_into_memory_whole(write: Write) -> None:
    path = write("m.txt.gz", gzip.compress(b"x" * 80 * 1024 * 1024, 1))
    tracemalloc.start()
    try:
        with Manifest(path) as manifest, pytest.raises(ManifestError, match="16,777,216 bytes"):
            manifest.check()
        assert tracemalloc.get_traced_memory()[1] < 60 * 1024 * 1024
    finally:
        tracemalloc.stop()


class TestParquet:
    """The one binary form; skipped where pyarrow is not installed."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Callable[..., Path]:
        pa = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")

        def made(columns: dict[str, Any], **options: Any) -> Path:
            path = tmp_path / "m.parquet"
            parquet.write_table(pa.table(columns), path, **options)
            return path

        return made

    def test_rows_are_numbered_from_1_and_read_twice(self, made: Callable[..., Path]) -> None:
        count = 3_000
        ids = [f"p-{number % 2_500}" for number in range(count)]
        path = made({"patient_id": ids, "n": range(count)}, row_group_size=700)
        facts, rows = read(path)
        assert (facts.rows, facts.duplicates, facts.columns) == (3_000, 500, ("n",))
        assert facts.duplicate_examples[0] == f"{path}:2501 repeats line 1 (patient p-0)"
        assert [row.line for row in rows] == list(range(1, 2_501))
        assert [row.extra for row in rows] == [{"n": number} for number in range(2_500)]

    def test_cells_become_what_json_can_hold(self, made: Callable[..., Path]) -> None:
        pa = pytest.importorskip("pyarrow")
        day = dt.date(2024, 2, 29)
        moment = dt.datetime(2024, 2, 29, 12, 30, 15, 120_000, tzinfo=dt.UTC)
        path = made(
            {
                "patient_id": pa.array(["p-1", None]).dictionary_encode(),
                "coverage_id": pa.array([None, "c-2"], pa.large_string()),
                "day": [day, None],
                "utc": pa.array([moment, None], pa.timestamp("ms", "UTC")),
                "nano": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
                "far": pa.array([10**12, None], pa.timestamp("ms", "UTC")),
                "time": [dt.time(1, 2, 3), None],
                "span": [dt.timedelta(seconds=1.5), None],
                "money": [Decimal("1.50"), None],
                "bytes": [b"\xff\x00", None],
                "float": [1.5, float("nan")],
                "endless": [float("inf"), 0.0],
                "yes": [True, None],
                "number": [2**60, None],
                "list": [[day], None],
                "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
                "struct": [{"a": Decimal(1)}, None],
                "bulkfetch_error": ["x", "y"],
            }
        )
        facts, (first, second) = read(path)
        assert (first.key, second.key) == (("p-1", None), (None, "c-2"))
        assert first.extra == {
            "day": "2024-02-29",
            "utc": "2024-02-29T12:30:15.120Z",
            "nano": "2023-11-14T22:13:20.123456789",
            "far": "2001-09-09T01:46:40.000Z",
            "time": "01:02:03.000000",
            "span": 1.5,
            "money": "1.50",
            "bytes": "/wA=",
            "float": 1.5,
            "endless": "inf",
            "yes": True,
            "number": 2**60,
            "list": ["2024-02-29"],
            "map": [["k", 1]],
            "struct": {"a": "1"},
        }
        assert second.extra == dict.fromkeys(first.extra) | {"endless": 0.0}
        assert facts.columns == tuple(first.extra)

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"patient_id": [1, 2]}, "column patient_id holds 'int64', not strings"),
            ({"coverage_id": [b"x"]}, "column coverage_id holds 'binary', not strings"),
            ({"mrn": ["p"]}, "rename the column 'mrn' to 'patient_id'"),
            ({"patient_id": ["p", None]}, ":2: has neither a patient_id nor a coverage_id"),
            ({"patient_id": ["p", "q\t"]}, r":2: patient_id holds U\+0009"),
        ],
    )
    def test_bad_columns_and_rows_are_named(
        self, made: Callable[..., Path], columns: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(ManifestError, match=words):
            read(made(columns))

    def test_a_date_that_python_cannot_hold_is_an_error_and_no_traceback(
        self, made: Callable[..., Path]
    ) -> None:
        pa = pytest.importorskip("pyarrow")
        far = pa.array([[10**15]], pa.list_(pa.timestamp("ms")))
        with pytest.raises(ManifestError, match=r"m\.parquet:1: the Parquet data cannot be read"):
            read(made({"patient_id": ["p"], "far": far}))

    def test_a_damaged_file_is_an_error(self, made: Callable[..., Path], write: Write) -> None:
        whole = made({"patient_id": [f"p-{number}" for number in range(1_000)]}).read_bytes()
        for damaged in (
            whole[:-20],
            whole[:100],
            b"PAR1",
            whole[:50] + b"\xff" * 500 + whole[550:],
        ):
            with pytest.raises(ManifestError, match="the Parquet data cannot be read from here on"):
                read(write("damaged.parquet", damaged))

    @pytest.mark.parametrize("content", [TABLE, gzip.compress(b"x", mtime=0), b""])
    def test_what_is_no_parquet_is_said_to_be_none(self, write: Write, content: str) -> None:
        with pytest.raises(ManifestError, match="is not a Parquet file"):
            read(write("m.parquet", content))

    def test_no_rows_is_an_error_unless_that_is_allowed(self, made: Callable[..., Path]) -> None:
        pa = pytest.importorskip("pyarrow")
        path = made({"patient_id": pa.array([], pa.string())})
        with pytest.raises(ManifestError, match="has no rows"):
            read(path)
        assert read(path, allow_empty=True)[1] == []

    def test_a_column_is_read_in_pieces_however_large_it_is(
        self, made: Callable[..., Path]
    ) -> None:
        path = made(
            {"patient_id": ["p-1"] * 40_000, "note": [os.urandom(100) for _ in range(40_000)]},
            data_page_size=64 * 1024,
        )
        sizes = []

        class Recorder(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                sizes.append(size or -1)
                return super().read(-1 if size is None else size) or b""

        with Manifest(path) as manifest, Recorder(path) as recorder:
            manifest._source.file.close()
            manifest._source.file = recorder
            manifest._source._state = manifest._source._stat()
            assert manifest.check().rows == 40_000
        assert 0 < max(sizes) < 1024 * 1024 < path.stat().st_size

    def test_without_pyarrow_the_error_says_what_to_install(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ManifestError, match=r"pip install 'bulkfetch\[parquet\]'"):
            read(write("m.parquet", b"PAR1"))


def test_a_cell_may_be_as_long_as_the_limit_on_cells(write: Write) -> None:
    note = "x" * 1024 * 1024
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["patient_id", "note"], ["p-1", note]])
    assert read(write("m.csv", buffer.getvalue()))[1][0].extra == {"note": note}
