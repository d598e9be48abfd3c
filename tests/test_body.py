"""Stored bytes on their way: hashed as stored, decoded in bounded pieces, told apart."""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib
from types import SimpleNamespace
from typing import Any, cast

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from bulkfetch.archive import Kept, Mark
from bulkfetch.body import Body, continues, mark_of
from bulkfetch.errors import BadBodyError, TooLargeError
from bulkfetch.media import EXTENSIONS, HEAD_BYTES, UNKNOWN_TYPE, is_declared, media_type_of
from bulkfetch.transport import Answer

MIB = 2**20


def answer(*headers: tuple[str, str]) -> Answer:
    """As much of an answer as a body looks at."""
    return cast("Answer", SimpleNamespace(headers=CIMultiDict(headers), host="storage.invalid"))


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def in_parts(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def taken(body: Body, parts: list[bytes]) -> bytes:
    return b"".join(piece for part in parts for piece in body.take(part))


GZIP = ("Content-Encoding", "gzip")


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 700))
def test_plain_bytes_are_kept_as_they_come(data: bytes, size: int) -> None:
    body = Body(answer(("x-goog-hash", f"crc32c={crc32c(data)},md5={md5(data)}")), None)
    assert taken(body, in_parts(data, size)) == data
    source = body.finish()
    assert body.size == len(data)
    assert body.sha256.hexdigest() == hashlib.sha256(data).hexdigest()
    assert body.head == data[:HEAD_BYTES]
    assert (source.crc32c, source.md5) == (crc32c(data), md5(data))
    assert source.host == "storage.invalid"


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=3000) | st.just(b"\0" * 200_000), min_size=1, max_size=5),
    st.integers(1, 500),
    st.sampled_from(["gzip", "x-gzip", "GZIP", " gzip "]),
)
def test_a_gzip_encoding_is_undone_in_any_chunking_and_any_number_of_members(
    members: list[bytes], size: int, name: str
) -> None:
    data, stored = b"".join(members), b"".join(gzip.compress(member, mtime=0) for member in members)
    body = Body(
        answer(
            ("Content-Encoding", name),
            ("x-goog-hash", f"crc32c={crc32c(stored)},md5={md5(stored)}"),
            ("x-goog-stored-content-length", str(len(stored))),
        ),
        None,
    )
    assert taken(body, in_parts(stored, size)) == data
    if not data:
        with pytest.raises(BadBodyError, match="empty"):
            body.finish()
        return
    body.finish()
    assert body.size == len(data)
    assert body.sha256.hexdigest() == hashlib.sha256(data).hexdigest()
    assert body.head == data[:HEAD_BYTES]


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB, 3 * MIB + 1])
@pytest.mark.parametrize("chunk", [1000, 10 * MIB])
def test_sizes_around_the_bound_of_a_piece_lose_nothing(size: int, chunk: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    body = Body(answer(GZIP), None)
    assert taken(body, in_parts(gzip.compress(data, 1), chunk)) == data
    body.finish()


def test_a_bomb_is_decoded_in_bounded_pieces() -> None:
    stored = gzip.compress(b"\0" * 32 * MIB, 9) * 2
    body = Body(answer(GZIP), None)
    sizes = [len(piece) for piece in body.take(stored)]
    assert sum(sizes) == 64 * MIB
    assert max(sizes) <= MIB
    body.finish()


def test_a_bomb_ends_at_max_file_size_before_it_is_all_decoded() -> None:
    stored = gzip.compress(b"\0" * 32 * MIB, 9)
    body = Body(answer(GZIP), 5 * MIB)
    with pytest.raises(TooLargeError, match="--max-file-size"):
        taken(body, [stored])
    assert 5 * MIB < body.size <= 6 * MIB


def test_a_size_that_is_announced_as_too_large_is_refused_before_a_byte_is_taken() -> None:
    with pytest.raises(TooLargeError):
        Body(answer(("Content-Length", "1001")), 1000)
    Body(answer(("Content-Length", "1000")), 1000)


@pytest.mark.parametrize("limit", [10, 11])
def test_exactly_max_file_size_is_not_too_large(limit: int) -> None:
    body = Body(answer(), limit)
    assert taken(body, [b"01234", b"56789"]) == b"0123456789"
    if limit == 10:
        with pytest.raises(TooLargeError):
            taken(body, [b"x"])


@given(st.binary(min_size=1, max_size=2000), st.data())
def test_a_gzip_encoding_that_is_cut_short_is_found_out(data: bytes, draw: Any) -> None:
    stored = gzip.compress(data, mtime=0)
    cut = draw.draw(st.integers(0, len(stored) - 1))
    body = Body(answer(GZIP), None)
    taken(body, in_parts(stored[:cut], 50))
    with pytest.raises(BadBodyError):
        body.finish()


@given(st.binary(min_size=1, max_size=2000), st.data())
def test_a_gzip_encoding_that_is_damaged_never_passes_for_the_image(data: bytes, draw: Any) -> None:
    stored = bytearray(gzip.compress(data, mtime=0))
    at = draw.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= draw.draw(st.integers(1, 255))
    body = Body(answer(GZIP), None)
    try:
        got = taken(body, [bytes(stored)])
        body.finish()
    except BadBodyError:
        return
    # Fields of the head that say nothing about the content may be anything.
    assert got == data


@pytest.mark.parametrize(
    "after", [b"x", b"\0" * 512, b"\x1f", b"trailing garbage", gzip.compress(b"y", mtime=0)[:-1]]
)
def test_what_follows_a_gzip_member_and_is_none_is_damage(after: bytes) -> None:
    def read() -> None:
        body = Body(answer(GZIP), None)
        taken(body, [gzip.compress(b"image") + after])
        body.finish()

    with pytest.raises(BadBodyError):
        read()


@pytest.mark.parametrize("stored", [zlib.compress(b"image"), b"plain bytes", b"\0" * 100])
def test_what_is_declared_as_gzip_and_is_none_is_damage(stored: bytes) -> None:
    body = Body(answer(GZIP), None)
    with pytest.raises(BadBodyError, match="damaged"):
        taken(body, [stored])


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "gzip;q=1"])
def test_an_encoding_that_was_not_asked_for_is_refused(encoding: str) -> None:
    with pytest.raises(BadBodyError, match="encoding"):
        Body(answer(("Content-Encoding", encoding)), None)


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", " "])
def test_no_encoding_is_none(encoding: str) -> None:
    body = Body(answer(("Content-Encoding", encoding)), None)
    assert taken(body, [b"image"]) == b"image"


DATA = b"the image as it is stored"
GOOD = [("crc32c", crc32c(DATA)), ("md5", md5(DATA))]
BAD = [("crc32c", crc32c(b"another")), ("md5", md5(b"another"))]


def hash_headers(pairs: list[tuple[str, str]], form: str) -> list[tuple[str, str]]:
    entries = [f"{name}={value}" for name, value in pairs]
    if form == "one line":
        return [("x-goog-hash", ",".join(entries))]
    if form == "one line, spaced":
        return [("X-Goog-Hash", " , ".join(entries))]
    return [("x-goog-hash", entry) for entry in entries]


@pytest.mark.parametrize("form", ["one line", "one line, spaced", "two lines"])
@pytest.mark.parametrize(
    ("pairs", "broken"),
    [
        (GOOD, None),
        (GOOD[::-1], None),
        (GOOD[:1], None),
        (GOOD[1:], None),
        ([BAD[0], GOOD[1]], "crc32c"),
        ([GOOD[0], BAD[1]], "md5"),
        (BAD[:1], "crc32c"),
        (BAD[1:], "md5"),
        ([("CRC32C", crc32c(b"another"))], "crc32c"),
        ([("crc32c", "AAAA")], "crc32c"),
    ],
)
def test_digests_are_compared_in_every_form_they_come_in(
    form: str, pairs: list[tuple[str, str]], broken: str | None
) -> None:
    body = Body(answer(*hash_headers(pairs, form)), None)
    taken(body, [DATA])
    if broken is None:
        source = body.finish()
        assert {source.crc32c, source.md5} - {None} == {value for _, value in pairs}
    else:
        with pytest.raises(BadBodyError, match=broken):
            body.finish()


def test_digests_are_of_the_stored_bytes_not_of_the_decoded_ones() -> None:
    body = Body(answer(GZIP, ("x-goog-hash", f"crc32c={crc32c(DATA)}")), None)
    taken(body, [gzip.compress(DATA)])
    with pytest.raises(BadBodyError, match="crc32c"):
        body.finish()


@pytest.mark.parametrize(
    "value",
    ["", ",", "=", "crc32c", "crc32c=not base64!", "crc32c=é", "crc32c=\udcff", "sha999=AAAA"],
    ids=ascii,
)
def test_what_is_no_digest_breaks_nothing_and_is_not_taken_for_one(value: str) -> None:
    body = Body(answer(("x-goog-hash", value)), None)
    taken(body, [DATA])
    source = body.finish()
    assert (source.crc32c, source.md5) == (None, None)


def test_without_a_hash_the_bytes_are_taken_and_the_source_says_so() -> None:
    body = Body(answer(("x-goog-generation", "17")), None)
    taken(body, [DATA])
    source = body.finish()
    assert (source.crc32c, source.md5, source.generation) == (None, None, "17")


def test_an_empty_body_is_no_image() -> None:
    with pytest.raises(BadBodyError, match="empty"):
        Body(answer(), None).finish()
    body = Body(answer(("x-goog-hash", f"crc32c={crc32c(b'')}")), None)
    assert taken(body, [b""]) == b""
    with pytest.raises(BadBodyError, match="empty"):
        body.finish()


@pytest.mark.parametrize(("length", "good"), [("25", True), ("24", False), ("26", False)])
def test_the_stored_length_must_be_the_one_that_came(length: str, good: bool) -> None:
    body = Body(answer(("x-goog-stored-content-length", length)), None)
    taken(body, [DATA])
    if good:
        body.finish()
    else:
        with pytest.raises(BadBodyError, match="25 bytes"):
            body.finish()


@pytest.mark.parametrize("length", ["", "-1", "many", "²", "1e3", "9" * 5000])
def test_a_length_that_is_none_breaks_nothing(length: str) -> None:
    body = Body(answer(("x-goog-stored-content-length", length), ("Content-Length", length)), 10**6)
    taken(body, [DATA])
    body.finish()


KINDS = {
    "jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "image/jpeg"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
    "gif": (b"GIF89a\x01\0\x01\0", "image/gif"),
    "tif": (b"II*\0\x08\0\0\0\0\0\0\0", "image/tiff"),
    "webp": (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "image/heic"),
    "bmp": (b"BM\x46\0\0\0\0\0\0\0", "image/bmp"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "application/pdf"),
}


@pytest.mark.parametrize("extension", KINDS)
def test_each_kind_of_bytes_has_its_extension_whatever_was_declared(extension: str) -> None:
    head, media_type = KINDS[extension]
    for declared in (None, "", "text/html", "image/png", media_type):
        assert media_type_of(head + b"\0" * 300, declared) == media_type
    assert EXTENSIONS[media_type] == extension


def test_big_endian_tiff_is_one_too() -> None:
    assert media_type_of(b"MM\0*\0\0\0\x08" + b"\0" * 300, None) == "image/tiff"


def test_every_extension_is_tried_above() -> None:
    assert set(KINDS) == set(EXTENSIONS.values())


@pytest.mark.parametrize("head", [b"x", b"some text", b"\0" * 50, b"<svg xmlns=''/>", b"< html>"])
def test_other_bytes_are_kept_as_unknown(head: bytes) -> None:
    assert media_type_of(head, None) == UNKNOWN_TYPE


PAGES = [
    b"<!DOCTYPE html><html>",
    b"<!doctype HTML PUBLIC",
    b"<html lang=en>",
    b"<HTML>",
    b"\xef\xbb\xbf<html>",
    b" \r\n\t<html>",
    b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
    b"<Error><Code>ExpiredToken</Code></Error>",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_no_image_unless_it_was_declared_as_one(page: bytes) -> None:
    for declared in (None, "", "image/jpeg", "application/pdf", "text/plain"):
        with pytest.raises(BadBodyError, match="page"):
            media_type_of(page, declared)
    for declared in ("text/html", "image/svg+xml", "application/xml", "APPLICATION/XHTML+XML"):
        assert media_type_of(page, declared) == UNKNOWN_TYPE


@given(st.binary(max_size=600), st.none() | st.text(max_size=20))
def test_no_bytes_break_the_telling_of_what_they_are(head: bytes, declared: str | None) -> None:
    try:
        assert media_type_of(head, declared)
    except BadBodyError:
        assert head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def test_an_object_that_was_decoded_on_the_way_is_not_held_against_what_is_stored() -> None:
    data = b"\x89PNG\r\n\x1a\n" + b"x" * 100
    stored = gzip.compress(data, mtime=0)
    headers = [
        ("x-goog-hash", f"crc32c={crc32c(stored)},md5={md5(stored)}"),
        ("x-goog-stored-content-length", str(len(stored))),
    ]
    decoded = Body(answer(*headers, ("x-goog-stored-content-encoding", "gzip")), None)
    assert taken(decoded, [data]) == data
    assert decoded.finish().crc32c == crc32c(stored)
    changed = Body(answer(*headers), None)
    assert taken(changed, [data]) == data
    with pytest.raises(BadBodyError):
        changed.finish()


@pytest.mark.parametrize(
    ("media_type", "declared", "same"),
    [
        ("image/jpeg", "image/jpeg", True),
        ("image/jpeg", "image/jpg", True),
        ("image/jpeg", "JPEG", True),
        ("image/jpeg", ".jpg", True),
        ("image/jpeg", "image/pjpeg", True),
        ("image/tiff", "image/tif", True),
        ("image/heic", "image/heif", True),
        ("application/pdf", "application/pdf; charset=binary", True),
        ("application/pdf", "scan (PDF)", True),
        ("image/jpeg", None, True),
        ("image/jpeg", "", True),
        ("image/jpeg", "image/png", False),
        ("application/pdf", "image/jpeg", False),
        ("application/octet-stream", "image/jpeg", False),
    ],
)
def test_what_people_write_for_a_type_is_understood(
    media_type: str, declared: str | None, same: bool
) -> None:
    assert is_declared(media_type, declared) is same


KEPT = Kept(mark=Mark(etag='"e1"', generation="7", total=100, crc32c="AAAAAA==", md5=None), size=40)
GOOD_206 = {"Content-Range": "bytes 40-99/100", "ETag": '"e1"', "x-goog-generation": "7"}


def test_a_206_of_the_same_object_from_where_it_was_asked_continues_a_part() -> None:
    assert continues(CIMultiDict(GOOD_206), KEPT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"Content-Range": "bytes 41-99/100"},
        {"Content-Range": "bytes 0-99/100"},
        {"Content-Range": "bytes 40-98/100"},
        {"Content-Range": "bytes 40-99/101"},
        {"Content-Range": "bytes 40-99/*"},
        {"Content-Range": ""},
        {"ETag": '"e2"'},
        {"ETag": 'W/"e1"'},
        {"x-goog-generation": "8"},
    ],
)
def test_any_other_206_does_not(wrong: dict[str, str]) -> None:
    assert not continues(CIMultiDict({**GOOD_206, **wrong}), KEPT)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"ETag": 'W/"weak"'}, False),
        ({"ETag": ""}, False),
        ({"x-goog-hash": ""}, False),
        ({"Content-Length": ""}, False),
        ({"Content-Encoding": "gzip"}, False),
    ],
)
def test_a_part_is_kept_only_of_an_object_that_can_be_told_again(
    change: dict[str, str], kept: bool
) -> None:
    headers = {"ETag": '"e1"', "x-goog-hash": "crc32c=AAAAAA==", "Content-Length": "100"}
    assert (mark_of(CIMultiDict({**headers, **change})) is not None) == kept
