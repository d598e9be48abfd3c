"""What bytes are, by their first ones."""

from __future__ import annotations

import re

import filetype

from bulkfetch.errors import BadBodyError

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
_PAGE_BEGINS = (b"<!doctype html", b"<html", b"<?xml", b"<error")


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
