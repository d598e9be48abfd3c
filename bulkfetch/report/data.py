"""What the page's script is given: the images as columns, their sidecars in packed blocks.

All of it is text by strangers. In the page it is data between tags that no browser runs, and has
no sign that could end them.
"""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bulkfetch.models import moment
from bulkfetch.report.images import Image

PER_BLOCK = 250
# What stands in these columns again and again is told once, by its number.
_CODED = (
    "directory", "patient_id", "coverage_id", "status", "side", "type", "state", "became", "kind",
    "problem", "run_id",
)  # fmt: skip
_PLAIN = ("image_id", "version", "size", "seconds")
# Signs that end a script's text, or a line of one, in a page.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def json_for_page(value: object) -> str:
    """Return JSON that can stand in a page between two tags: plain ASCII, and no tag in it."""
    return json.dumps(value, separators=(",", ":")).translate(_ESCAPES)


def columns(images: Iterable[tuple[Image, int | None]], *, show_names: bool) -> dict[str, Any]:
    """Return images as columns: plain values, or a list of `values` and the `codes` of each."""
    plain = (*_PLAIN, "name") if show_names else _PLAIN
    whole: dict[str, Any] = {name: [] for name in (*plain, "at", "thumbnail")}
    codes: dict[str, dict[str | None, int]] = {name: {} for name in _CODED}
    coded: dict[str, list[int]] = {name: [] for name in _CODED}
    for image, thumbnail in images:
        for name in plain:
            whole[name].append(getattr(image, name))
        whole["at"].append(image.at and int(moment(image.at).timestamp()))
        whole["thumbnail"].append(thumbnail)
        for name, known in codes.items():
            value = getattr(image, name)
            coded[name].append(known.setdefault(value, len(known)))
    for name, known in codes.items():
        whole[name] = {"values": list(known), "codes": coded[name]}
    return whole


def blocks(sidecars: Iterable[str]) -> Iterator[str]:
    """Yield the sidecars, so many together: a JSON list, packed by zlib, in base64."""
    left = iter(sidecars)
    while some := list(itertools.islice(left, PER_BLOCK)):
        yield base64_text(zlib.compress(_joined(some), 6))


def base64_text(data: bytes) -> str:
    """Return bytes as text that can stand in a page anywhere."""
    return base64.b64encode(data).decode()


def _joined(sidecars: Sequence[str]) -> bytes:
    return f"[{','.join(text or 'null' for text in sidecars)}]".encode("utf-8", "surrogatepass")
