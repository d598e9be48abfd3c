"""The pool of drawn files that stored objects are made from.

Drawing a card for each of a million images would cost hours; a pool of a few dozen costs a second,
and only what is asked for is drawn. An object is a face with its own image ID and version written
into a comment, so no two are equal.
"""

from __future__ import annotations

import base64
import enum
import random
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from bulkfetch.simulator import cards, jpeg, pdf, png
from bulkfetch.simulator.crc32c import combine, crc32c
from bulkfetch.simulator.names import FAMILY_NAMES, GIVEN_NAMES

__all__ = ["POOL_SIZE", "Face", "Media", "Part", "Side", "face", "stamped"]

POOL_SIZE = 12
"""Members that have a card; each has two sides and three forms."""

_STAMP_BYTES = 64
"""Length of the text that makes an object unique: fixed, so that offsets in a PDF hold."""

_BLOCK_BYTES = 65_536
"""Size of one block of padding: the longest JPEG segment is 65,535 bytes and its marker's first."""

_SMALLEST_BLOCK = 16
"""Bytes: a PNG chunk is 12 without its data."""

_THEMES = (
    cards.Theme("EXAMPLE VALLEY HEALTH", "Open Choice PPO", (18, 58, 112), (32, 132, 196)),
    cards.Theme("SAMPLE MUTUAL", "Everyday HMO", (16, 84, 72), (48, 168, 128)),
    cards.Theme("FICTIVE CARE", "Gold EPO 1500", (92, 36, 104), (176, 84, 176)),
    cards.Theme("NONESUCH MEDICAL", "High Deductible 3000", (52, 60, 76), (224, 136, 40)),
)


class Media(enum.StrEnum):
    """What the bytes of an object are."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    PDF = "application/pdf"


class Side(enum.StrEnum):
    """Side of a card."""

    FRONT = "FRONT"
    BACK = "BACK"


class Part(NamedTuple):
    """Some bytes and their CRC32C."""

    data: bytes
    crc: int


class Face(NamedTuple):
    """A file in two halves; the comment that makes it unique goes between them."""

    media: Media
    head: Part
    tail: tuple[Part, ...]
    """In parts, since padding is many times the same block: a face is small however long it is."""


def face(media: Media, side: Side, member: int, pad_to: int | None) -> Face:
    """The drawn file for a member of the pool, padded to about `pad_to` bytes if that is more.

    A PDF shows both sides, whatever the side asked for.
    """
    return _face(media, Side.FRONT if media is Media.PDF else side, member % POOL_SIZE, pad_to)


def stamped(base: Face, text: str) -> Part:
    """The file that `base` becomes with `text` (64 ASCII characters at most) in its comment."""
    comment = _part(_comment(base.media, text.encode("ascii").ljust(_STAMP_BYTES)))
    return _joined([base.head, comment, *base.tail])


@cache
def _face(media: Media, side: Side, member: int, pad_to: int | None) -> Face:
    theme, text = _THEMES[member % len(_THEMES)], _card_text(member)
    stamp_length = len(_comment(media, bytes(_STAMP_BYTES)))
    if media is Media.PDF:
        pictures = (
            cards.jpeg_file(cards.front(theme, text)),
            cards.jpeg_file(cards.back(theme, text)),
        )
        head = pdf.START_OF_FILE
        unpadded = len(cards.letter(theme, text, pictures, 0)) + len(head) + stamp_length
        padding = _padding(media, (pad_to or 0) - unpadded)
        offset = len(head) + stamp_length + sum(len(block.data) for block in padding)
        tail = cards.letter(theme, text, pictures, offset)
        return Face(media, _part(head), (*padding, _part(tail)))
    canvas = cards.front(theme, text) if side is Side.FRONT else cards.back(theme, text)
    if media is Media.JPEG:
        head, tail = jpeg.START_OF_FILE, jpeg.encode(canvas.tiles)
    else:
        head, tail = png.start_of_file(canvas.tiles), png.body(canvas.tiles)
    padding = _padding(media, (pad_to or 0) - len(head) - stamp_length - len(tail))
    return Face(media, _part(head), (*padding, _part(tail)))


def _card_text(member: int) -> cards.CardText:
    given = GIVEN_NAMES[member % len(GIVEN_NAMES)]
    family = FAMILY_NAMES[(member * 5 + 3) % len(FAMILY_NAMES)]
    return cards.CardText(
        member=f"{given} {family}",
        member_id=f"SIM {1000 + member * 37:04d} {member * 7919 % 100_000:05d}-01",
        group=f"GRP-{4200 + member:06d}",
        rx_bin=f"{member * 13:06d}",
        rx_pcn="SIMPCN",
        effective=f"{member % 12 + 1:02d}/01/2024",
        phone=f"1-800-555-01{member % 100:02d}",
    )


def _comment(media: Media, text: bytes) -> bytes:
    makers: dict[Media, Callable[[bytes], bytes]] = {
        Media.JPEG: jpeg.comment,
        Media.PNG: lambda payload: png.text_chunk("Comment", payload),
        Media.PDF: pdf.comment,
    }
    return makers[media](text)


def _padding(media: Media, size_bytes: int) -> list[Part]:
    """So many bytes that a reader of the format skips, to within a few; none if that is too few."""
    whole, rest = divmod(max(size_bytes, 0), _BLOCK_BYTES)
    parts = [_pad_block(media, _BLOCK_BYTES)] * whole
    if rest >= _SMALLEST_BLOCK:
        parts.append(_pad_block(media, rest))
    return parts


@cache
def _pad_block(media: Media, size_bytes: int) -> Part:
    # Text that does not compress, so that a gzip-encoded object is about as long as it should be.
    filling = random.Random(size_bytes)  # noqa: S311 - no secret
    noise = base64.b64encode(filling.randbytes(size_bytes))
    match media:
        case Media.JPEG:
            return _part(jpeg.comment(noise[: size_bytes - 4]))
        case Media.PNG:
            return _part(png.chunk(b"siMp", noise[: size_bytes - 12]))
        case Media.PDF:
            return _part(pdf.comment(noise[: size_bytes - 2]))


def _part(data: bytes) -> Part:
    return Part(data, crc32c(data))


def _joined(parts: list[Part]) -> Part:
    crc = 0
    for part in parts:
        crc = combine(crc, part.crc, len(part.data))
    return Part(b"".join(part.data for part in parts), crc)
