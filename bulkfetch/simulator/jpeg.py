"""A small baseline JPEG encoder (ITU-T T.81): colour, no subsampling, one set of tables.

It exists so that the simulator can serve real JPEG files without an imaging library. The work on a
tile (colour transform, cosine transform, quantisation, entropy coding of the AC coefficients) is
cached by the tile's bytes, so that a picture of repeated tiles costs a few milliseconds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import mul
from typing import NamedTuple

from bulkfetch.simulator.tiles import TILE, Tile

__all__ = ["START_OF_FILE", "comment", "encode"]

START_OF_FILE = struct.pack(
    ">HHH5sHBHHBB", 0xFFD8, 0xFFE0, 16, b"JFIF\0", 0x0102, 1, 300, 300, 0, 0
)
"""SOI and the JFIF segment, which has to come first; a comment may follow it."""

_ZIGZAG = tuple(
    sorted(
        range(64),
        key=lambda i: (
            i // 8 + i % 8,
            i // 8 if (i // 8 + i % 8) % 2 else i % 8,
        ),
    )
)
"""Position in the block of each coefficient in coding order (T.81, figure A.6)."""

# T.81 table K.1 halved: quality 75 on the scale that most programs use; small text stays clean.
_QUANTISATION = tuple(
    max(1, step // 2)
    for step in (
        *(16, 11, 10, 16, 24, 40, 51, 61),
        *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77),
        *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101),
        *(72, 92, 95, 98, 112, 100, 103, 99),
    )
)

# T.81 tables K.3 and K.5: how many codes there are of each length, and what they stand for.
_DC_LENGTHS = bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0))
_DC_SYMBOLS = bytes(range(12))
_AC_LENGTHS = bytes((0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7D))
_AC_SYMBOLS = bytes.fromhex(
    "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728"
    "292a3435363738393a434445464748494a535455565758595a636465666768696a737475767778797a83848586878889"
    "8a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2"
    "e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
)
_END_OF_BLOCK = 0x00
_SIXTEEN_ZEROS = 0xF0

_COSINES = tuple(
    tuple(
        (math.sqrt(1 / 8) if u == 0 else 0.5) * math.cos((2 * x + 1) * u * math.pi / 16)
        for x in range(8)
    )
    for u in range(8)
)


class _CodedBlock(NamedTuple):
    """One component of one tile: its DC value, and the bits of the others as text of 0 and 1."""

    dc: int
    ac_bits: str


def encode(rows: Sequence[Sequence[Tile]]) -> bytes:
    """The JPEG stream after `START_OF_FILE`: tables, frame, scan and end marker."""
    height, width = len(rows) * TILE, len(rows[0]) * TILE
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"".join(
        bytes((component, 0x11, 0)) for component in (1, 2, 3)
    )
    scan = b"\x03" + b"".join(bytes((component, 0x00)) for component in (1, 2, 3)) + b"\x00\x3f\x00"
    return b"".join(
        (
            _segment(0xDB, b"\x00" + bytes(_QUANTISATION[place] for place in _ZIGZAG)),
            _segment(0xC0, frame),
            _segment(0xC4, b"\x00" + _DC_LENGTHS + _DC_SYMBOLS),
            _segment(0xC4, b"\x10" + _AC_LENGTHS + _AC_SYMBOLS),
            _segment(0xDA, scan),
            _entropy_coded(rows),
            b"\xff\xd9",
        )
    )


def comment(text: bytes) -> bytes:
    """A comment segment; `text` is at most 65,533 bytes (T.81, B.2.4.5)."""
    return _segment(0xFE, text)


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _entropy_coded(rows: Sequence[Sequence[Tile]]) -> bytes:
    bits: list[str] = []
    append = bits.append
    before = [0, 0, 0]
    for row in rows:
        for tile in row:
            for component, block in enumerate(_coded(tile)):
                append(_dc_bits(block.dc - before[component]))
                append(block.ac_bits)
                before[component] = block.dc
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    # A zero byte follows each 0xFF, so that it is not taken for a marker (T.81, F.1.2.3).
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")


@lru_cache(maxsize=8192)
def _coded(tile: Tile) -> tuple[_CodedBlock, ...]:
    reds, greens, blues = tile[0::3], tile[1::3], tile[2::3]
    pixels = list(zip(reds, greens, blues, strict=True))
    return (
        _coded_block([0.299 * r + 0.587 * g + 0.114 * b - 128 for r, g, b in pixels]),
        _coded_block([-0.168736 * r - 0.331264 * g + 0.5 * b for r, g, b in pixels]),
        _coded_block([0.5 * r - 0.418688 * g - 0.081312 * b for r, g, b in pixels]),
    )


def _coded_block(samples: list[float]) -> _CodedBlock:
    if max(samples) - min(samples) < 0.5:
        return _CodedBlock(round(samples[0] * 8 / _QUANTISATION[0]), _ac_codes()[_END_OF_BLOCK])
    rows = [samples[start : start + 8] for start in range(0, 64, 8)]
    halfway = [[sum(map(mul, row, cosine)) for row in rows] for cosine in _COSINES]
    values = [
        round(sum(map(mul, halfway[u], _COSINES[v])) / _QUANTISATION[8 * v + u])
        for v in range(8)
        for u in range(8)
    ]
    return _CodedBlock(values[0], "".join(_ac_bits([values[place] for place in _ZIGZAG[1:]])))


def _ac_bits(values: list[int]) -> Iterator[str]:
    codes = _ac_codes()
    zeros = 0
    for value in values:
        if value == 0:
            zeros += 1
            continue
        while zeros > 15:
            yield codes[_SIXTEEN_ZEROS]
            zeros -= 16
        size = abs(value).bit_length()
        yield codes[zeros << 4 | size] + _magnitude(value, size)
        zeros = 0
    if zeros:
        yield codes[_END_OF_BLOCK]


@lru_cache(maxsize=4096)
def _dc_bits(difference: int) -> str:
    size = abs(difference).bit_length()
    return _dc_codes()[size] + (_magnitude(difference, size) if size else "")


def _magnitude(value: int, size: int) -> str:
    """The extra bits of a coefficient; a negative one is written less one (T.81, F.1.2.1)."""
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}"


@lru_cache(maxsize=1)
def _dc_codes() -> dict[int, str]:
    return _codes(_DC_LENGTHS, _DC_SYMBOLS)


@lru_cache(maxsize=1)
def _ac_codes() -> dict[int, str]:
    return _codes(_AC_LENGTHS, _AC_SYMBOLS)


def _codes(lengths: bytes, symbols: bytes) -> dict[int, str]:
    """The canonical code of each symbol, as text of 0 and 1 (T.81, annex C)."""
    codes: dict[int, str] = {}
    code = 0
    remaining = iter(symbols)
    for length, count in enumerate(lengths, start=1):
        for _ in range(count):
            codes[next(remaining)] = f"{code:0{length}b}"
            code += 1
        code <<= 1
    return codes
