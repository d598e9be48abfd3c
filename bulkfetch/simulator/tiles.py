"""A canvas of eight-by-eight tiles: how the simulator draws quickly with no imaging library.

Tiles are immutable and shared: a card of seven thousand tiles is seven thousand references to a few
hundred distinct ones, and whatever is computed for a tile (its JPEG coefficients, say) is computed
once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

from bulkfetch.simulator import font

__all__ = ["TILE", "Canvas", "Color", "Tile", "flat"]

TILE = 8
"""Pixels along a tile's side: the block size of baseline JPEG (ITU-T T.81, A.3.3)."""

Color: TypeAlias = tuple[int, int, int]
Tile: TypeAlias = bytes
"""64 pixels of red, green and blue, row by row: 192 bytes."""


class Canvas:
    """A picture of `columns` by `rows` tiles; so are places and sizes, unless pixels are said."""

    def __init__(self, columns: int, rows: int, background: Color) -> None:
        self.columns = columns
        self.rows = rows
        self.tiles: list[list[Tile]] = [[flat(background)] * columns for _ in range(rows)]

    def fill(self, column: int, row: int, columns: int, rows: int, color: Color) -> None:
        """Covers a rectangle with one colour."""
        tile = flat(color)
        for line in self.tiles[row : row + rows]:
            line[column : column + columns] = [tile] * columns

    def paint(
        self, column: int, row: int, columns: int, rows: int, shade: Callable[[int, int], Color]
    ) -> None:
        """Draws a rectangle by pixels: `shade` gets x and y in pixels from its corner."""
        for down in range(rows):
            for across in range(columns):
                self.tiles[row + down][column + across] = bytes(
                    channel
                    for y in range(down * TILE, (down + 1) * TILE)
                    for x in range(across * TILE, (across + 1) * TILE)
                    for channel in shade(x, y)
                )

    def repeat_across(self, column: int, row: int, period: int, rows: int, columns: int) -> None:
        """Copies the `period` tiles at (column, row) rightward until `columns` are covered."""
        for line in self.tiles[row : row + rows]:
            pattern = line[column : column + period]
            line[column : column + columns] = (pattern * (columns // period + 1))[:columns]

    def write(
        self, column: int, row: int, text: str, *, ink: Color, paper: Color, scale: int = 1
    ) -> None:
        """Writes a line, cut at the right edge; a letter takes `scale` by `2 * scale` tiles."""
        for character in text:
            if column + scale > self.columns:
                return
            for down, tiles in enumerate(_letter(character, scale, ink, paper)):
                self.tiles[row + down][column : column + scale] = tiles
            column += scale


@lru_cache(maxsize=256)
def flat(color: Color) -> Tile:
    """A tile of one colour."""
    return bytes(color) * (TILE * TILE)


@lru_cache(maxsize=2048)
def _letter(character: str, scale: int, ink: Color, paper: Color) -> tuple[tuple[Tile, ...], ...]:
    """The tiles of one letter, top row first."""
    palette = [
        bytes((p * (16 - level) + i * level + 8) // 16 for i, p in zip(ink, paper, strict=True))
        for level in range(17)
    ]
    lines = [[palette[level] for level in line] for line in font.coverage(character, scale)]
    return tuple(
        tuple(
            b"".join(b"".join(line[x : x + TILE]) for line in lines[y : y + TILE])
            for x in range(0, font.CELL_WIDTH * scale, TILE)
        )
        for y in range(0, font.CELL_HEIGHT * scale, TILE)
    )
