"""A minimal PDF writer (ISO 32000-1): one page of text in standard fonts, and JPEG pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["START_OF_FILE", "Line", "Picture", "body", "comment"]

START_OF_FILE = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
"""Header and the comment of high bytes that marks the file as binary (7.5.2)."""

_PAGE = (612, 792)
"""US letter, in points."""


class Line(NamedTuple):
    """A line of text; (x, y) is its start on the page in points from the lower left corner."""

    x: int
    y: int
    size: int
    text: str
    bold: bool = False


class Picture(NamedTuple):
    """A JPEG file and the rectangle it fills, in points."""

    jpeg: bytes
    pixels: tuple[int, int]
    x: int
    y: int
    width: int
    height: int


def comment(text: bytes) -> bytes:
    """A comment line; `text` holds no line end."""
    return b"%" + text + b"\n"


def body(lines: Sequence[Line], pictures: Sequence[Picture], offset: int) -> bytes:
    """Objects, cross-reference table and trailer, for a file in which they begin at `offset`."""
    names = " ".join(f"/P{n} {7 + n} 0 R" for n in range(len(pictures)))
    fonts = "/F0 5 0 R /F1 6 0 R"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {_PAGE[0]} {_PAGE[1]}] /Contents 4 0 R "
            f"/Resources << /Font << {fonts} >> /XObject << {names} >> >> >>"
        ).encode("ascii"),
        _stream("", _page_content(lines, pictures)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding /WinAnsiEncoding >>",
        *(
            _stream(
                "/Type /XObject /Subtype /Image /ColorSpace /DeviceRGB /BitsPerComponent 8 "
                f"/Width {picture.pixels[0]} /Height {picture.pixels[1]} /Filter /DCTDecode",
                picture.jpeg,
            )
            for picture in pictures
        ),
    ]
    parts: list[bytes] = []
    entries = ["0000000000 65535 f \n"]
    for number, content in enumerate(objects, start=1):
        entries.append(f"{offset:010d} 00000 n \n")
        parts.append(b"%d 0 obj\n%b\nendobj\n" % (number, content))
        offset += len(parts[-1])
    table = f"xref\n0 {len(entries)}\n{''.join(entries)}"
    trailer = f"trailer\n<< /Size {len(entries)} /Root 1 0 R >>\nstartxref\n{offset}\n%%EOF\n"
    return b"".join(parts) + table.encode("ascii") + trailer.encode("ascii")


def _page_content(lines: Sequence[Line], pictures: Sequence[Picture]) -> bytes:
    operators = [
        f"q {p.width} 0 0 {p.height} {p.x} {p.y} cm /P{n} Do Q" for n, p in enumerate(pictures)
    ]
    operators += [
        f"BT /F{int(line.bold)} {line.size} Tf {line.x} {line.y} Td ({_escaped(line.text)}) Tj ET"
        for line in lines
    ]
    return "\n".join(operators).encode("latin-1")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _stream(entries: str, data: bytes) -> bytes:
    return b"<< %b /Length %d >>\nstream\n%b\nendstream" % (
        entries.encode("ascii"),
        len(data),
        data,
    )
