"""Feeds damaged API answers to the record parser and the planner until the time is up.

    python tests/fuzz/fuzz_records.py --seconds 60

Good answers of every kind are changed as JSON and as bytes at random; each result must be read,
or be refused by a FetchError, within a second, and no record that was read may lead outside the
archive, meet another's place, or carry its signed URL into a sidecar. Anything else stops with
the seed and the bytes that did it; `--seed` begins there again.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from bulkfetch import api
from bulkfetch.errors import FetchError, HostDeniedError
from bulkfetch.models import ImageRecord, ManifestRow
from bulkfetch.plan import Held, place_of, plan
from bulkfetch.settings import Settings
from bulkfetch.transport import Transport, expires_at

LONGEST_S = 1.0
SECRET = "5ec2e7"
IMAGE: dict[str, Any] = {
    "id": "309f9a78-cd2c-4458-9608-000000000012",
    "organization_id": "5c1d0a3e-51a7-4e0d-9b0c-000000000001",
    "deactivated": False,
    "version": 3,
    "updated_at": "2026-01-02T03:04:05.678Z",
    "updating_user_id": "u-1",
    "display_name": "card \U0001f600/front\n",
    "file_name": "../card.jpg",
    "file_type": "image/jpeg",
    "status": "UPLOADED",
    "signed_url": f"https://storage.googleapis.com/b/o?X-Goog-Date=20260102T030405Z"
    f"&X-Goog-Expires=900&X-Goog-Signature={SECRET}",
    "coverage": {"id": "c-1", "side": "FRONT"},
    "patient": {"id": "p-1", "notes": None},
    "unknown": {"deep": [1, 2.5, None, True]},
}
GOOD: dict[str, Any] = {
    "images": [IMAGE, {**IMAGE, "id": "i-2", "coverage": None, "patient": None}],
    "image": IMAGE,
    "coverages": [{"id": "c-1", "patient": "p-1"}, {"id": "c-2"}],
    "token": {"access_token": f"eyJ.{SECRET}.x", "expires_in": 18000, "token_type": "Bearer"},
}
SHAPES: dict[str, TypeAdapter[Any]] = {
    "images": api._IMAGES,
    "image": api._IMAGE,
    "coverages": api._COVERAGES,
    "token": api._TOKEN,
}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**19), 0.5, 1e308, float("inf"),
    float("-inf"), float("nan"), "", " ", ".", "..", "/", "\\", "../../etc/passwd", "/etc/passwd",
    "a/b", "a\\b", "C:", "CON", "con.txt", "nul", "LPT1", ".bulkfetch", "-rf", "coverage-x", "a.",
    "\x00", "a\x00b", "\n", "\r\n", "\u202e", "\ud800", "\udfff", "\ufeff", "é", "e\u0301", "İ",
    "ß", "x" * 300, "x" * 100_000, "\U0001f600" * 80, "UPLOADED", "PENDING", "2026-13-01",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-W01-1", "12:00", [], {}, [[]],
    [None], {"id": "x"}, {"id": None}, {"": ""}, {"id": {"id": {}}},
    "https://[::1", "http://\ud800/", "https://x/?X-Goog-Date=1&X-Goog-Expires=1",
    "https://x/?X-Goog-Date=99991231T235959Z&X-Goog-Expires=1e999", "https://x/?Expires=nan",
    "https://x/?Expires=" + "9" * 5000, "https://x/?Expires=1&Expires=2", "https://x:99999999/",
)  # fmt: skip
PIECES: tuple[bytes, ...] = (
    *(bytes([number]) for number in range(256)),
    *(b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b'"id":"..",'),
    *(b"<!doctype html>", b"{}", b"[]", b"null", b"\x1f\x8b", b" " * 1000, b'"', b"\\"),
)
SAFE = re.compile(r"[a-z0-9._~-]+")
ROW = ManifestRow(line=2, patient_id="../p", coverage_id="c-9", extra={})
SETTINGS = Settings(
    out="archive",
    file_type=("image/*",),
    side=("front",),
    updated_since=datetime(2026, 1, 1, tzinfo=UTC),
)

TRANSPORT = Transport(None, SETTINGS, time.time)  # type: ignore[arg-type]  # nothing is sent


def changed(value: Any, chance: random.Random) -> Any:
    """The JSON value with one thing in it replaced, removed, repeated or added."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        turn = chance.random()
        if turn < 0.6:
            value[key] = changed(value[key], chance)
        elif turn < 0.75:
            del value[key]
        else:
            value[str(chance.choice(VALUES))[:200]] = copy.deepcopy(chance.choice(VALUES))
        return value
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        if chance.random() < 0.8:
            value[place] = changed(value[place], chance)
        else:
            value.append(copy.deepcopy(value[place]))
        return value
    return copy.deepcopy(chance.choice(VALUES))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes after up to four random changes."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(content))
        end = min(len(content), start + chance.choice([0, 1, 2, 16]))
        turn = chance.randrange(4)
        if turn == 0:
            content = content[:start]
        elif turn == 1:
            content = content[:start] + content[end:]
        else:
            content = content[:start] + chance.choice(PIECES) + content[end:]
    return content


def answer(kind: str, chance: random.Random) -> tuple[bytes, bool]:
    """An answer that is well or not so well, and whether its secrets are in their own fields."""
    value = copy.deepcopy(GOOD[kind])
    for _ in range(chance.randint(0, 3)):
        value = changed(value, chance)
    content = json.dumps(value).encode("utf-8", "surrogatepass")
    return (damaged(content, chance), False) if chance.random() < 0.4 else (content, True)


def read(kind: str, content: bytes, *, in_order: bool) -> bool:
    """Parses an answer and plans what it lists; whether it was good."""
    try:
        found = api._parse(SHAPES[kind], content, "the API")
    except FetchError as error:
        assert str(error)  # noqa: PT017  # refused is one of two good ends
        assert SECRET not in str(error)  # noqa: PT017
        assert len(str(error)) < 2000  # noqa: PT017
        return False
    assert not in_order or SECRET not in repr(found)
    records = found if isinstance(found, list) else [found]
    places: dict[tuple[str, str], tuple[str, int]] = {}
    for record in records:
        if isinstance(record, ImageRecord):
            look_at(record, places)
    return True


def look_at(record: ImageRecord, places: dict[tuple[str, str], tuple[str, int]]) -> None:
    """Does with a record what a run does before it downloads."""
    place = place_of(record, ROW)
    for name in (place.directory, place.stem, place.sidecar(2), place.file("jpg")):
        assert SAFE.fullmatch(name), name
        assert not name.startswith((".", "-")), name
        assert len(f".{name}.part") <= 255, name
    owner = places.setdefault((place.directory, place.stem), (record.id, record.version))
    assert owner == (record.id, record.version)
    item = plan(record, ROW, place, None, SETTINGS)
    assert plan(record, ROW, place, Held(None, 1, "damaged"), SETTINGS).action is item.action
    kept = record.for_sidecar()
    assert "signed_url" not in kept
    json.dumps(kept, ensure_ascii=False).encode("utf-8", "backslashreplace")
    if record.signed_url is not None:
        url = record.signed_url.get_secret_value()
        expires_at(url)
        try:
            assert TRANSPORT._allowed(url).host == "storage.googleapis.com"
        except HostDeniedError as error:
            assert SECRET not in str(error)  # noqa: PT017


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    seed, good = options.seed, 0
    while time.monotonic() < until:
        chance = random.Random(seed)
        kind = chance.choice(sorted(GOOD))
        content, in_order = answer(kind, chance)
        began = time.monotonic()
        try:
            good += read(kind, content, in_order=in_order)
            took = time.monotonic() - began
            assert took < LONGEST_S, f"took {took:.1f} s"
        except BaseException:
            sys.stderr.write(f"--seed {seed}: {kind} {content[:4000]!r}\n")
            raise
        seed += 1
    sys.stderr.write(f"{seed - options.seed:,} answers, {good:,} of them good\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
