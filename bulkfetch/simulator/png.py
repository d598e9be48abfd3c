"""A small PNG writer (W3C PNG, third edition): eight-bit colour, by zlib and nothing else."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from bulkfetch.simulator.tiles import TILE, Tile

__all__ = ["body", "chunk", "start_of_file", "text_chunk"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_NONE = b"\x00"
_COLOUR = 2
_PIXELS_PER_METRE = 11811
"""300 dots an inch, as a scanner would say."""


def start_of_file(rows: Sequence[Sequence[Tile]]) -> bytes:
    """Signature and header chunk; a text chunk may follow."""
    width, height = len(rows[0]) * TILE, len(rows) * TILE
    return _SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR, 0, 0, 0))


def text_chunk(keyword: str, text: bytes) -> bytes:
    """A tEXt chunk, which viewers ignore."""
    return chunk(b"tEXt", keyword.encode("latin-1") + b"\x00" + text)


def body(rows: Sequence[Sequence[Tile]]) -> bytes:
    """What follows the header: resolution, image data, end."""
    lines = (
        _FILTER_NONE + b"".join(tile[y * TILE * 3 : (y + 1) * TILE * 3] for tile in row)
        for row in rows
        for y in range(TILE)
    )
    return b"".join(
        (
            chunk(b"pHYs", struct.pack(">IIB", _PIXELS_PER_METRE, _PIXELS_PER_METRE, 1)),
            chunk(b"IDAT", zlib.compress(b"".join(lines), 6)),
            chunk(b"IEND", b""),
        )
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk: length, kind, data, CRC of kind and data."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
