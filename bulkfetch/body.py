"""The bytes of a stored object as they come: counted, hashed, decoded, and told apart.

Header fields are those of Google Cloud Storage's XML API:
https://cloud.google.com/storage/docs/xml-api/reference-headers. Its digests are of the bytes as
stored, so an object stored with gzip encoding is hashed before it is decoded.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping

import filetype
import google_crc32c
from multidict import MultiMapping

from bulkfetch.archive import Kept, Mark
from bulkfetch.errors import BadBodyError, TooLargeError
from bulkfetch.models import Source
from bulkfetch.transport import Answer
from bulkfetch.words import counted

# What the names of archived files may end in; every other kind of bytes is a `bin`.
EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/tiff": "tif",
    "image/webp": "webp",
    "image/heic": "heic",
    "image/bmp": "bmp",
    "application/pdf": "pdf",
}
UNKNOWN_TYPE = "application/octet-stream"
# The longest signature that `filetype` looks for lies within these.
HEAD_BYTES = 8192
_DECODED_AT_ONCE_BYTES = 2**20
_DIGITS = 18  # no size has more, and `int` refuses what has thousands
_PAGE_BEGINS = (b"<!doctype html", b"<html", b"<?xml", b"<error")


class Body:
    """The bytes of one answer.

    Attributes:
        size: bytes so far, as they are to be kept.
        sha256: the hash of these.
        head: the first of these, enough to tell what they are.
    """

    def __init__(
        self, answer: Answer, max_file_size: int | None, *, expected: Mark | None = None
    ) -> None:
        """Begin with an answer's head; `expected` is what the whole of a continued part is."""
        self._headers = answer.headers
        self._host = answer.host
        self._limit = max_file_size
        self._expected = hashes_of(answer.headers)
        if expected is not None:
            told = {"crc32c": expected.crc32c, "md5": expected.md5}
            self._expected = {k: base64.b64decode(v) for k, v in told.items() if v is not None}
        self._md5 = hashlib.md5(usedforsecurity=False) if "md5" in self._expected else None
        self._crc32c = google_crc32c.Checksum()
        self._stored_size = 0
        self._gunzip = _gunzip_for(answer.headers)
        # Stored with gzip encoding and decoded on the way: what storage says of the stored bytes
        # cannot be held against these.
        stored_as = answer.headers.get("x-goog-stored-content-encoding", "").lower()
        self._is_transcoded = stored_as == "gzip" and self._gunzip is None
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.head = b""
        self._check_limit(_whole_number(answer.headers, "Content-Length") or 0)

    def take(self, part: bytes) -> Iterator[bytes]:
        """Hash bytes as stored, and yield them as they are to be kept.

        Raises:
            BadBodyError: their gzip encoding is damaged.
            TooLargeError: they are more than `max_file_size`.
        """
        self._stored_size += len(part)
        self._crc32c.update(part)
        if self._md5:
            self._md5.update(part)
        for piece in self._gunzip.take(part) if self._gunzip else (part,):
            self.size += len(piece)
            self._check_limit(self.size)
            self.sha256.update(piece)
            if len(self.head) < HEAD_BYTES:
                self.head = (self.head + piece)[:HEAD_BYTES]
            yield piece

    def finish(self) -> Source:
        """Check the whole against what storage said of it.

        Raises:
            BadBodyError: it is short, empty, or of another digest.
        """
        if self._gunzip:
            self._gunzip.finish()
        if not self.size:
            raise BadBodyError("the body is empty")
        if not self._is_transcoded:
            self._check_stored()
        return Source(
            host=self._host,
            generation=self._headers.get("x-goog-generation"),
            md5=_text(self._expected.get("md5")),
            crc32c=_text(self._expected.get("crc32c")),
        )

    def _check_stored(self) -> None:
        stored = _whole_number(self._headers, "x-goog-stored-content-length")
        if stored is not None and stored != self._stored_size:
            raise BadBodyError(
                f"{counted(self._stored_size, 'byte')} came of the {stored:,} that are stored"
            )
        for name, digest in (("crc32c", self._crc32c), ("md5", self._md5)):
            expected = self._expected.get(name)
            if digest and expected is not None and digest.digest() != expected:
                raise BadBodyError(f"the bytes do not match the {name} that storage gave for them")

    def _check_limit(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise TooLargeError(
                f"the file is larger than --max-file-size ({counted(self._limit, 'byte')})"
            )


def media_type_of(head: bytes, declared: str | None) -> str:
    """Say what bytes are, by their first ones.

    Raises:
        BadBodyError: they are a page (a login form, an XML error) and were not declared as one.
    """
    found: str | None = filetype.guess_mime(head)
    if found is not None:
        return found
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    if start.startswith(_PAGE_BEGINS) and not any(
        word in (declared or "").lower() for word in ("xml", "html")
    ):
        raise BadBodyError("the body is an HTML or XML page, not an image")
    return UNKNOWN_TYPE


def is_declared(media_type: str, declared: str | None) -> bool:
    """Tell whether bytes are what they were said to be, as far as anything was said.

    People write `image/jpg`, `JPEG` or `.pdf`, and mean what everybody thinks they do.
    """
    if not declared:
        return True
    words = {word for word in re.split(r"[^a-z0-9]+", declared.lower()) if word}
    names = {media_type.rpartition("/")[2], EXTENSIONS.get(media_type, "bin")}
    aliases = {"jpg": "pjpeg", "tif": "tiff", "heic": "heif", "bmp": "ms"}
    return bool(words & (names | {aliases[name] for name in names if name in aliases}))


def mark_of(headers: MultiMapping[str], longer_than_bytes: int = 0) -> Mark | None:
    """Say which object a long body is of, or None where a part of it could not be continued.

    That takes an ETag that compares byte for byte (RFC 9110, section 8.8.3), the whole's length
    and a digest, and no encoding to be undone.
    """
    total = _whole_number(headers, "Content-Length")
    if total is None or total <= longer_than_bytes:
        return None
    etag, hashes = headers.get("ETag", ""), hashes_of(headers)
    crc32c, md5 = _text(hashes.get("crc32c")), _text(hashes.get("md5"))
    if not etag.startswith('"') or not (crc32c or md5) or _gunzip_for(headers):
        return None
    generation = headers.get("x-goog-generation")
    return Mark(etag=etag, generation=generation, total=total, crc32c=crc32c, md5=md5)


def continues(headers: MultiMapping[str], kept: Kept) -> bool:
    """Tell whether a 206 is the rest of a kept part: same object, same length, right place."""
    mark = kept.mark
    return (
        headers.get("Content-Range", "").strip()
        == f"bytes {kept.size}-{mark.total - 1}/{mark.total}"
        and headers.get("ETag", "") == mark.etag
        and headers.get("x-goog-generation") in (None, mark.generation)
    )


class _Gunzip:
    """Undoes a stored gzip encoding, of one member or several, in pieces of bounded size."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    def take(self, part: bytes) -> Iterator[bytes]:
        while True:
            if part and self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            try:
                piece = self._member.decompress(part, _DECODED_AT_ONCE_BYTES)
            except zlib.error:
                raise BadBodyError("the gzip encoding of the stored bytes is damaged") from None
            if piece:
                yield piece
            part = self._member.unconsumed_tail or self._member.unused_data
            # A full piece may have more behind it, though all input was taken.
            if not part and len(piece) < _DECODED_AT_ONCE_BYTES:
                return

    def finish(self) -> None:
        if not self._member.eof:
            raise BadBodyError("the gzip encoding of the stored bytes is cut short")


def _gunzip_for(headers: Mapping[str, str]) -> _Gunzip | None:
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return _Gunzip()
    raise BadBodyError("storage used a content encoding that was not asked for")


def hashes_of(headers: MultiMapping[str]) -> dict[str, bytes]:
    """Read `x-goog-hash: crc32c=<base64>,md5=<base64>`, on one line or several.

    What is no base64 is not a digest.
    """
    found: dict[str, bytes] = {}
    for entry in ",".join(headers.getall("x-goog-hash", [])).split(","):
        name, _, value = entry.strip().partition("=")
        if not value:
            continue
        try:
            found[name.lower()] = base64.b64decode(value, validate=True)
        except ValueError:
            continue
    return found


def _text(digest: bytes | None) -> str | None:
    return None if digest is None else base64.b64encode(digest).decode("ascii")


def _whole_number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
