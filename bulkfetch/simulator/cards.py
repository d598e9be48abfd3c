"""The pictures themselves: both sides of an insurance card, and a letter with the cards on it.

All of it is invented and says so on its face. Telephone numbers are of the 555-01xx block, which is
set aside for fiction.
"""

from __future__ import annotations

from typing import NamedTuple

from bulkfetch.simulator import jpeg, pdf
from bulkfetch.simulator.tiles import TILE, Canvas, Color

__all__ = ["SIZE", "CardText", "Theme", "back", "front", "letter"]

_COLUMNS, _ROWS = 107, 68
SIZE = (_COLUMNS * TILE, _ROWS * TILE)
"""Pixels: the 85.6 by 54 mm of a bank card (ISO/IEC 7810 ID-1), ten to the millimetre."""

_INK: Color = (28, 33, 43)
_LABEL: Color = (104, 114, 130)
_PAPER: Color = (250, 251, 253)
_ALARM: Color = (176, 28, 40)
_STRIPE: Color = (38, 38, 44)
_NOTICE = "SPECIMEN - SYNTHETIC DATA - NOT A REAL CARD"
_WAVE_TILES = 8


class Theme(NamedTuple):
    """The plan that issued a card, and its colours."""

    plan: str
    product: str
    deep: Color
    bright: Color


class CardText(NamedTuple):
    """What is printed on one member's card."""

    member: str
    member_id: str
    group: str
    rx_bin: str
    rx_pcn: str
    effective: str
    phone: str


def front(theme: Theme, text: CardText) -> Canvas:
    """The side with the member's name and numbers."""
    canvas = Canvas(_COLUMNS, _ROWS, _PAPER)
    _header(canvas, theme)
    _emblem(canvas, _COLUMNS - 13, 2, theme)
    canvas.write(4, 3, theme.plan, ink=(255, 255, 255), paper=theme.deep, scale=2)
    canvas.write(4, 8, theme.product, ink=(226, 232, 242), paper=theme.deep)
    _field(canvas, 4, 18, "MEMBER NAME", text.member)
    _field(canvas, 4, 27, "MEMBER ID", text.member_id)
    _field(canvas, 4, 36, "GROUP NUMBER", text.group)
    _field(canvas, 62, 18, "RX BIN", text.rx_bin)
    _field(canvas, 62, 27, "RX PCN", text.rx_pcn)
    _field(canvas, 62, 36, "EFFECTIVE", text.effective)
    canvas.fill(4, 45, _COLUMNS - 8, 1, _tint(theme.bright, 3))
    copays = "Office visit $20    Specialist $40    Urgent care $50    Emergency $150"
    canvas.write(4, 47, copays, ink=_INK, paper=_PAPER)
    canvas.write(4, 50, f"Member services {text.phone}", ink=_INK, paper=_PAPER)
    _notice(canvas, 55)
    return canvas


def back(theme: Theme, text: CardText) -> Canvas:
    """The side with the stripe, the telephone numbers and the claims address."""
    canvas = Canvas(_COLUMNS, _ROWS, _PAPER)
    canvas.fill(0, 4, _COLUMNS, 9, _STRIPE)
    canvas.write(4, 16, theme.plan, ink=theme.deep, paper=_PAPER, scale=2)
    small = (
        "This card is for identification only and does not guarantee",
        "coverage. Show it at each visit. In an emergency, go to the",
        "nearest hospital.",
    )
    for number, line in enumerate(small):
        canvas.write(4, 21 + 2 * number, line, ink=_INK, paper=_PAPER)
    columns = (
        (
            "SUBMIT CLAIMS TO",
            (f"{theme.plan}", "Attn: Claims", "P.O. Box 0000", "Sampleton, ZZ 00000"),
        ),
        (
            "QUESTIONS",
            (f"Members   {text.phone}", "Providers 1-800-555-0142", "Pharmacy  1-800-555-0177"),
        ),
        ("ELECTRONIC PAYER ID", ("SIM00",)),
    )
    for (heading, lines), column, row in zip(columns, (4, 50, 50), (30, 30, 41), strict=True):
        canvas.write(column, row, heading, ink=_LABEL, paper=_PAPER)
        for number, line in enumerate(lines):
            canvas.write(column, row + 2 + 2 * number, line, ink=_INK, paper=_PAPER)
    canvas.write(4, 47, f"Member ID {text.member_id}", ink=_INK, paper=_PAPER)
    canvas.fill(4, 51, _COLUMNS - 8, 1, _tint(theme.bright, 3))
    _notice(canvas, 55)
    return canvas


def letter(theme: Theme, text: CardText, pictures: tuple[bytes, bytes], offset: int) -> bytes:
    """The body of a PDF: a covering letter, and below it both sides of a card from JPEG files."""
    heading = f"{theme.plan.title()} - proof of coverage"
    paragraphs = (
        "To whom it may concern,",
        f"this confirms that {text.member}, member {text.member_id}, group {text.group},",
        f"has been enrolled in {theme.product} since {text.effective}.",
        "Copies of both sides of the member's card are below.",
        f"Questions: {text.phone}",
    )
    lines = [pdf.Line(72, 720, 18, heading, bold=True), pdf.Line(72, 698, 10, _NOTICE, bold=True)]
    lines += [pdf.Line(72, 664 - 16 * n, 11, line) for n, line in enumerate(paragraphs)]
    width, height = 312, 312 * _ROWS // _COLUMNS
    images = [
        pdf.Picture(data, SIZE, 150, y, width, height)
        for data, y in zip(pictures, (350, 130), strict=True)
    ]
    return pdf.body(lines, images, offset)


def jpeg_file(canvas: Canvas) -> bytes:
    """The canvas as a whole JPEG file."""
    return jpeg.START_OF_FILE + jpeg.encode(canvas.tiles)


def _header(canvas: Canvas, theme: Theme) -> None:
    canvas.fill(0, 0, _COLUMNS, 11, theme.deep)
    period = _WAVE_TILES * TILE
    depth = 4 * TILE

    def wave(x: int, y: int) -> Color:
        # Two parabolic arcs a period, so that the pattern repeats with few tiles.
        half = period // 2
        bend = (x % half) * (half - x % half) / (half * half / 4) * depth * 0.3
        sign = 1 if x % period < half else -1
        edge = depth * 0.4 + sign * bend
        if y < edge - 6:
            return theme.deep
        if y < edge:
            return theme.bright
        if y < edge + 5:
            return _tint(theme.bright, 6)
        return _PAPER

    canvas.paint(0, 11, _WAVE_TILES, 4, wave)
    canvas.repeat_across(0, 11, _WAVE_TILES, 4, _COLUMNS)


def _emblem(canvas: Canvas, column: int, row: int, theme: Theme) -> None:
    """A white disc with a cross: no company's sign."""
    tiles = 8
    middle = tiles * TILE / 2

    def shade(x: int, y: int) -> Color:
        across, down = x + 0.5 - middle, y + 0.5 - middle
        level = min(max(middle - 1 - (across * across + down * down) ** 0.5, 0.0), 1.0)
        arm, reach = 6, 19
        crossed = (abs(across) < arm and abs(down) < reach) or (
            abs(down) < arm and abs(across) < reach
        )
        inner = theme.bright if crossed else (255, 255, 255)
        red, green, blue = (
            round(outer + (inside - outer) * level)
            for outer, inside in zip(theme.deep, inner, strict=True)
        )
        return red, green, blue

    canvas.paint(column, row, tiles, tiles, shade)


def _field(canvas: Canvas, column: int, row: int, label: str, value: str) -> None:
    canvas.write(column, row, label, ink=_LABEL, paper=_PAPER)
    canvas.write(column, row + 2, value, ink=_INK, paper=_PAPER, scale=2)


def _notice(canvas: Canvas, row: int) -> None:
    paper = _tint(_ALARM, 14)
    canvas.fill(0, row, _COLUMNS, _ROWS - row, paper)
    canvas.fill(0, row, _COLUMNS, 1, _ALARM)
    canvas.write(_COLUMNS // 2 - len(_NOTICE), row + 5, _NOTICE, ink=_ALARM, paper=paper, scale=2)


def _tint(color: Color, sixteenths: int) -> Color:
    """The colour mixed with so many sixteenths of white."""
    red, green, blue = ((c * (16 - sixteenths) + 255 * sixteenths) // 16 for c in color)
    return red, green, blue
