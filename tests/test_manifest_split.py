"""`bulkfetch manifest split`: one manifest made into several, each row in one of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bulkfetch.building import split_manifest
from bulkfetch.manifest import Manifest
from bulkfetch.manifest.writer import form_of, writing
from bulkfetch.models import ManifestRow, Shard
from tests.conftest import bulkfetch, with_mounts_of_its_own, write_manifest

SHARES = 4


def read(path: Path, shard: Shard | None = None) -> list[ManifestRow]:
    with Manifest(path, allow_empty=True, shard=shard) as manifest:
        manifest.check()
        return list(manifest.rows())


def cells(rows: list[ManifestRow]) -> list[tuple[object, ...]]:
    return [(*row.key, row.extra) for row in rows]


def source(directory: Path, name: str, rows: int = 10_500) -> Path:
    """A manifest of every kind of row, in a form."""
    table = directory / "source.jsonl"
    lines = [
        {"patient_id": f"p-{n}", "ward": f'№ {n % 7}, "east"\n', "note": "ü" if n % 2 else ""}
        | ({"coverage_id": f"c-{n}"} if n % 3 == 0 else {})
        for n in range(rows)
    ]
    lines += [{"coverage_id": f"alone-{n}", "ward": "", "note": ""} for n in range(5)]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if name == table.name:
        return table
    path = directory / name
    if name.endswith(".txt"):
        path.write_text("".join(f"p-{n}\n" for n in range(rows)))
        return path
    columns = ["patient_id", "coverage_id", "ward", "note"]
    with (
        path.open("wb") as file,
        writing(file, form_of(name), columns, compress=name.endswith(".gz")) as writer,
    ):
        writer.write(lines)
    return path


@pytest.mark.parametrize(
    "name", ["source.jsonl", "m.csv", "m.tsv", "m.csv.gz", "m.jsonl.gz", "m.txt", "m.parquet"]
)
def test_each_row_is_in_the_share_that_download_would_give_it(tmp_path: Path, name: str) -> None:
    path = source(tmp_path, name)
    result = bulkfetch(
        "manifest", "split", path, "--shards", str(SHARES), "--to", tmp_path / "shares", "--json"
    )
    assert result.status == 0, result.err
    answer = json.loads(result.out)
    stem, _, ending = name.partition(".")
    paths = [tmp_path / "shares" / f"{stem}-{n}-of-{SHARES}.{ending}" for n in range(1, SHARES + 1)]
    assert sorted((tmp_path / "shares").iterdir()) == paths
    for number, share in enumerate(paths, 1):
        assert share.stat().st_mode & 0o777 == 0o600
        wanted = cells(read(path, Shard(number, SHARES)))
        assert cells(read(share)) == wanted
        assert answer["shares"][str(share)] == len(wanted)
    assert answer["rows"] == sum(answer["shares"].values()) == len(read(path))
    assert "times the mean" in result.err


def test_columns_stay_as_they_are_and_repeats_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("ward,patient_id,bulkfetch_kind\n,p-1,x\neast,p-2,\n,p-1,\n")
    result = bulkfetch("manifest", "split", path, "--shards=2", "--to", tmp_path / "to", "--json")
    assert json.loads(result.out)["duplicates"] == 1
    shares = [share.read_text() for share in sorted((tmp_path / "to").iterdir())]
    assert {share.splitlines()[0] for share in shares} == {"patient_id,ward"}
    assert sorted(line for share in shares for line in share.splitlines()[1:]) == [
        "p-1,", "p-2,east",
    ]  # fmt: skip


def test_an_empty_share_is_said_and_is_a_manifest(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", ["p-1"])
    result = bulkfetch("manifest", "split", path, "--shards=2", "--to", tmp_path / "to")
    assert result.status == 0
    assert "0 rows: an empty share" in result.err
    assert "download --allow-empty" in result.err
    assert sorted(len(read(share)) for share in (tmp_path / "to").iterdir()) == [0, 1]


def test_standard_input_can_be_split(tmp_path: Path) -> None:
    result = bulkfetch(
        "manifest", "split", "-", "--shards=2", "--to", tmp_path / "to", stdin=b"patient_id\np-1\n"
    )
    assert result.status == 0, result.err
    names = sorted(path.name for path in (tmp_path / "to").iterdir())
    assert names == ["manifest-1-of-2.csv", "manifest-2-of-2.csv"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", ["p-1", "p-2"])
    (tmp_path / "to").mkdir()
    there = tmp_path / "to" / "m-2-of-3.csv"
    there.write_text("mine")
    result = bulkfetch("manifest", "split", path, "--shards=3", "--to", tmp_path / "to")
    assert result.status == 2
    assert f"{there} is there already" in result.err
    assert list((tmp_path / "to").iterdir()) == [there]
    assert there.read_text() == "mine"


@pytest.mark.parametrize("shards", ["0", "1", "257", "-4", "two"])
def test_a_number_that_cannot_be_is_refused(tmp_path: Path, shards: str) -> None:
    path = write_manifest(tmp_path / "m.csv", ["p-1"])
    result = bulkfetch("manifest", "split", path, f"--shards={shards}", "--to", tmp_path / "to")
    assert result.status == 2
    assert "Traceback" not in result.err
    assert not (tmp_path / "to").exists()


def test_a_bad_manifest_is_named_by_line_and_nothing_is_written(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", ["p-1", "p-2,too many"])
    result = bulkfetch("manifest", "split", path, "--shards=2", "--to", tmp_path / "to")
    assert result.status == 2
    assert "m.csv:3: has 2 cells" in result.err
    assert not (tmp_path / "to").exists()


def test_a_full_disk_is_status_4_and_leaves_nothing(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", [f"patient-{n:040}" for n in range(20_000)])
    disk = tmp_path / "disk"
    disk.mkdir()
    within = with_mounts_of_its_own(
        f'mount -t tmpfs -o size=200k none "{disk}" && "$@"; status=$?; '
        f'ls -A "{disk}" | wc -l >&2; exit $status'
    )
    result = bulkfetch("manifest", "split", path, "--shards=2", "--to", disk, within=within)
    assert result.status == 4, result.err
    assert result.err.splitlines()[-1].strip() == "0"


@pytest.mark.parametrize("place", ["to", "to/below"])
def test_a_place_that_cannot_be_written_is_status_4(tmp_path: Path, place: str) -> None:
    path = write_manifest(tmp_path / "m.csv", ["p-1"])
    (tmp_path / "to").write_text("a file")
    result = bulkfetch("manifest", "split", path, "--shards=2", "--to", tmp_path / place)
    assert result.status == 4
    assert f"{tmp_path / 'to'} is a file: name a directory with --to" in result.err


def test_parquet_without_pyarrow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path, "m.parquet", rows=3)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Exception, match="Parquet needs pyarrow"):
        split_manifest(path, 2, tmp_path / "to")
    assert not (tmp_path / "to").exists()
