"""The letters on the simulator's cards: a bitmap face drawn for this project.

Every glyph is five columns wide and nine rows high (seven above the base line, two below it).
Glyphs are smoothed when they are enlarged, so that one small drawing serves every size. Cells are
whole multiples of eight pixels, which is what makes the JPEG encoder fast: the same letter is the
same block wherever it stands.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["CELL_HEIGHT", "CELL_WIDTH", "coverage"]

CELL_WIDTH = 8
CELL_HEIGHT = 16
"""Size of a cell at scale 1, in pixels."""

_COLUMNS = 5
_ROWS = 9
_SUBSAMPLES = 4
"""Samples along each side of a pixel: sixteen levels of grey are enough for a smooth edge."""

_STRIPS = (
    (
        "ABCDEFGHIJKLM",
        """
.###. ####. .###. ####. ##### ##### .###. #...# .###. ..### #...# #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.##
#...# #...# #.... #...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.#
##### ####. #.... #...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.#
#...# #...# #.... #...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...#
#...# ####. .###. ####. ##### #.... .###. #...# .###. .##.. #...# ##### #...#
""",
    ),
    (
        "NOPQRSTUVWXYZ",
        """
#...# .###. ####. .###. ####. .#### ##### #...# #...# #...# #...# #...# #####
##..# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....#
#.#.# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#.
#.#.# #...# ####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#..
#..## #...# #.... #.#.# #.#.. ....# ..#.. #...# .#.#. #.#.# .#.#. ..#.. .#...
#...# #...# #.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #....
#...# .###. #.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. #####
""",
    ),
    (
        "abcdefghijklm",
        """
..... #.... ..... ....# ..... ..##. ..... #.... ..#.. ...#. #.... .##.. .....
..... #.... ..... ....# ..... .#... ..... #.... ..... ..... #.... ..#.. .....
.###. ####. .###. .#### .###. ####. .#### ####. .##.. ..##. #..#. ..#.. ##.#.
....# #...# #.... #...# #...# .#... #...# #...# ..#.. ...#. #.#.. ..#.. #.#.#
.#### #...# #.... #...# ##### .#... #...# #...# ..#.. ...#. ##... ..#.. #.#.#
#...# #...# #.... #...# #.... .#... #...# #...# ..#.. ...#. #.#.. ..#.. #.#.#
.#### ####. .###. .#### .###. .#... .#### #...# .###. ...#. #..#. ..##. #.#.#
..... ..... ..... ..... ..... ..... ....# ..... ..... #..#. ..... ..... .....
..... ..... ..... ..... ..... ..... .###. ..... ..... .##.. ..... ..... .....
""",
    ),
    (
        "nopqrstuvwxyz",
        """
..... ..... ..... ..... ..... ..... .#... ..... ..... ..... ..... ..... .....
..... ..... ..... ..... ..... ..... .#... ..... ..... ..... ..... ..... .....
####. .###. ####. .#### #.##. .#### ####. #...# #...# #.#.# #...# #...# #####
#...# #...# #...# #...# ##... #.... .#... #...# #...# #.#.# .#.#. #...# ...#.
#...# #...# #...# #...# #.... .###. .#... #...# #...# #.#.# ..#.. #...# ..#..
#...# #...# #...# #...# #.... ....# .#... #...# .#.#. #.#.# .#.#. #...# .#...
#...# .###. ####. .#### #.... ####. ..##. .#### ..#.. .#.#. #...# .#### #####
..... ..... #.... ....# ..... ..... ..... ..... ..... ..... ..... ....# .....
..... ..... #.... ....# ..... ..... ..... ..... ..... ..... ..... .###. .....
""",
    ),
    (
        "0123456789.,:",
        """
.###. ..#.. .###. .###. ...#. ##### .###. ##### .###. .###. ..... ..... .....
#...# .##.. #...# #...# ..##. #.... #...# ....# #...# #...# ..... ..... .....
#..## ..#.. ....# ....# .#.#. #.... #.... ...#. #...# #...# ..... ..... ..#..
#.#.# ..#.. ...#. ..##. #..#. ####. ####. ...#. .###. .#### ..... ..... .....
##..# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....# ..... ..... .....
#...# ..#.. .#... #...# ...#. #...# #...# ..#.. #...# #...# ..... ..#.. ..#..
.###. .###. ##### .###. ...#. .###. .###. ..#.. .###. .###. ..#.. ..#.. .....
..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .#... .....
""",
    ),
    (
        "-/#()&$+'%*!?",
        """
..... ....# .#.#. ...#. .#... .##.. ..#.. ..... ..#.. ##..# ..... ..#.. .###.
..... ....# .#.#. ..#.. ..#.. #..#. .#### ..#.. ..#.. ##..# #.#.# ..#.. #...#
..... ...#. ##### .#... ...#. #.#.. #.#.. ..#.. ..... ...#. .###. ..#.. ....#
##### ..#.. .#.#. .#... ...#. .#... .###. ##### ..... ..#.. ##### ..#.. ...#.
..... .#... ##### .#... ...#. #.#.# ..#.# ..#.. ..... .#... .###. ..#.. ..#..
..... #.... .#.#. ..#.. ..#.. #..#. ####. ..#.. ..... #..## #.#.# ..... .....
..... #.... .#.#. ...#. .#... .##.# ..#.. ..... ..... #..## ..... ..#.. ..#..
""",
    ),
)


@lru_cache(maxsize=1024)
def coverage(character: str, scale: int) -> tuple[bytes, ...]:
    """How much of each pixel of a cell the letter covers, row by row, 0 (none) to 16 (all).

    Rows are `8 * scale` long and there are `16 * scale` of them. A character that the face lacks is
    drawn as a question mark, so that text never fails to draw.
    """
    width, height = CELL_WIDTH * scale, CELL_HEIGHT * scale
    if character == " ":
        return (bytes(width),) * height
    glyphs = _glyphs()
    bitmap = _doubled(_doubled(glyphs.get(character, glyphs["?"])))
    # One half pixel of air left and right, one pixel above and below, in units of scale 1.
    left, top = 0.5 * scale, 1.0 * scale
    columns = _sample_map(width, left, width - scale, 4 * _COLUMNS)
    rows = _sample_map(height, top, height - 2 * scale, 4 * _ROWS)
    return tuple(
        bytes(
            sum(1 for y in ys for x in xs if y >= 0 and x >= 0 and bitmap[y][x]) for xs in columns
        )
        for ys in rows
    )


@lru_cache(maxsize=1)
def _glyphs() -> dict[str, list[list[bool]]]:
    glyphs: dict[str, list[list[bool]]] = {}
    for characters, art in _STRIPS:
        lines = art.strip().splitlines()
        lines += ["." * len(lines[0])] * (_ROWS - len(lines))
        for position, character in enumerate(characters):
            start = position * (_COLUMNS + 1)
            glyphs[character] = [
                [mark == "#" for mark in line[start : start + _COLUMNS]] for line in lines
            ]
    return glyphs


def _doubled(bitmap: list[list[bool]]) -> list[list[bool]]:
    """The bitmap at twice its size; a corner is cut where two like neighbours meet."""
    height, width = len(bitmap), len(bitmap[0])
    doubled: list[list[bool]] = []
    for y in range(height):
        upper: list[bool] = []
        lower: list[bool] = []
        for x in range(width):
            here = bitmap[y][x]
            above = y > 0 and bitmap[y - 1][x]
            below = y + 1 < height and bitmap[y + 1][x]
            before = x > 0 and bitmap[y][x - 1]
            after = x + 1 < width and bitmap[y][x + 1]
            if above == below or before == after:
                upper += [here, here]
                lower += [here, here]
            else:
                upper += [above if above == before else here, above if above == after else here]
                lower += [below if below == before else here, below if below == after else here]
        doubled += [upper, lower]
    return doubled


def _sample_map(pixels: int, start: float, span: float, source: int) -> list[tuple[int, ...]]:
    """For each pixel, the source positions of its samples; -1 for one outside the drawing."""
    mapping = []
    for pixel in range(pixels):
        samples = []
        for step in range(_SUBSAMPLES):
            place = (pixel + (step + 0.5) / _SUBSAMPLES - start) / span * source
            samples.append(int(place) if 0 <= place < source else -1)
        mapping.append(tuple(samples))
    return mapping
