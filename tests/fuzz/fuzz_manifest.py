"""Feeds damaged manifests to the reader until the time is up.

    python tests/fuzz/fuzz_manifest.py --seconds 60

Good manifests of every form are cut, spliced and overwritten at random; each result must be read,
or be refused by ManifestError, within a second. Anything else stops with the seed and the bytes
that did it; `--seed` begins there again.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

from bulkfetch.errors import ManifestError
from bulkfetch.manifest import Manifest, ManifestFormat

LONGEST_S = 1.0
TABLE = 'patient_id,coverage_id,note\r\np-1,c-1,"a ""b""\n, c"\n\n,c-2,é\np-1,c-1,\np-3,,x\n'
OBJECTS = (
    '{"patient_id": "p-1", "n": 1.5, "x": [{"y": null}]}\n\n'
    '{"coverage_id": "c-\\u00e9\\ud83d\\ude00", "bulkfetch_error": "z"}\n{"patient_id": "p-1"}\n'
)
GOOD = {
    ManifestFormat.csv: TABLE.encode(),
    ManifestFormat.tsv: TABLE.replace(",", "\t").encode("utf-8-sig"),
    ManifestFormat.txt: "# all\np-1\r\n p-2 \n\np-1\npé".encode(),
    ManifestFormat.jsonl: OBJECTS.encode(),
}
PIECES: tuple[bytes, ...] = (
    *(bytes([number]) for number in range(256)),
    *(
        b"\r\n",
        b"\n\n",
        b'"',
        b'""',
        b",,",
        b"\t",
        b" #",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xed\xa0\x80",
    ),
    *(text.encode() for text in ("\u2028", "\u202e", "\x85", "\u00a0", "é" * 600, "😀")),
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"\\ud800", b"[" * 2000, b'{"a":' * 200),
    *(b"patient_id", b"coverage_id", b"bulkfetch_x", b"null", b"true", b"{}", b"[]", b"x" * 2000),
    *(b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"PAR1", b"%PDF-"),
)


def parquet() -> bytes | None:
    """A small good Parquet file; None where pyarrow is not installed."""
    try:
        import pyarrow as pa  # noqa: PLC0415  # optional
        from pyarrow import parquet as pq  # noqa: PLC0415
    except ImportError:
        return None
    table = pa.table(
        {
            "patient_id": ["p-1", None, "p-1"],
            "coverage_id": ["c-1", "c-2", "c-1"],
            "at": pa.array([1, None, 2**40], pa.timestamp("ns")),
            "list": [[b"x"], None, []],
            "f": [1.5, float("nan"), None],
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes after up to eight random changes."""
    for _ in range(chance.randint(0, 8)):
        start = chance.randint(0, len(content))
        end = min(len(content), start + chance.choice([0, 0, 1, 2, 8, 64]))
        piece = chance.choice(PIECES)
        change = chance.randrange(5)
        if change == 0:
            content = content[:start] + content[end:]
        elif change == 1:
            content = content[:end] + content[start:]
        elif change == 2:
            content = content[:start]
        else:
            content = content[:start] + piece + content[end if change == 3 else start :]
    return content


def read(path: Path, form: ManifestFormat) -> bool:
    """Reads the manifest in both passes; whether it was good."""
    try:
        with Manifest(path, form) as manifest:
            facts = manifest.check()
            count = 0
            for row in manifest.rows():
                count += 1
                for identity in filter(None, row.key):
                    kinds = {unicodedata.category(letter) for letter in identity if letter != " "}
                    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
                assert row.patient_id or row.coverage_id
                json.dumps(row.extra, allow_nan=False, ensure_ascii=False).encode()
            assert count == facts.distinct == facts.rows - facts.duplicates
    except ManifestError as error:
        assert str(error)  # noqa: PT017  # refused is one of two good ends
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seeds = dict(GOOD)
    if binary := parquet():
        seeds[ManifestFormat.parquet] = binary
    until = time.monotonic() + options.seconds
    seed, good = options.seed, 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "manifest")
        while time.monotonic() < until:
            chance = random.Random(seed)
            form = chance.choice(sorted(seeds))
            content = damaged(seeds[form], chance)
            if form is not ManifestFormat.parquet and chance.random() < 0.3:
                content = gzip.compress(content, 1)
                content = damaged(content, chance) if chance.random() < 0.5 else content
            path.write_bytes(content)
            began = time.monotonic()
            try:
                good += read(path, form)
                took = time.monotonic() - began
                assert took < LONGEST_S, f"took {took:.1f} s"
            except BaseException:
                sys.stderr.write(f"--seed {seed}: {form} {content!r}\n")
                raise
            seed += 1
    sys.stderr.write(f"{seed - options.seed:,} manifests, {good:,} of them good\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
