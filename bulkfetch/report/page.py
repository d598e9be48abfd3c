"""The page: a template with everything escaped, and a policy that lets it load and send nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import IO

import jinja2

from bulkfetch.progress import size_text, time_text
from bulkfetch.report.data import PER_BLOCK, base64_text, blocks, columns, json_for_page
from bulkfetch.report.facts import Facts, balances
from bulkfetch.report.gather import Gathered
from bulkfetch.report.pictures import COLUMNS, HEIGHT, PER_SHEET, WIDTH
from bulkfetch.report.target import BEGINS
from bulkfetch.words import counted, filters_text

# What a browser opens in a moment; of more, those that are well are left out first.
MOST_IMAGES = 200_000
# Of the template's output, which are some words each, or a sheet.
_PIECES = 64


def write_page(
    file: IO[bytes],
    facts: Facts,
    gathered: Gathered,
    timelines: Sequence[object],
    *,
    show_names: bool,
    folder: str | None,
    archive: str | None,
) -> None:
    """Write the page.

    Args:
        timelines: of some runs, the newest first; see `Timeline.steps`.
        folder: the way from the page to its sheets of thumbnails, as a URL begins; None where they
            are in it.
        archive: the way from the page to the archive, as a link has it; None where none leads.
    """
    style, script = _asset("page.css"), _asset("page.js")
    data = {
        "images": columns(gathered.images(), show_names=show_names),
        "sheet": {"columns": COLUMNS, "cells": PER_SHEET, "width": WIDTH, "height": HEIGHT},
        "perBlock": PER_BLOCK,
        "folder": folder,
        "archive": archive,
        "timelines": timelines,
    }
    stream = (
        _environment()
        .get_template("page.html")
        .stream(
            begins=BEGINS,
            policy=_policy(style, script, pictures="data: 'self' file:" if folder else "data:"),
            style=style,
            script=script,
            facts=facts,
            most=MOST_IMAGES,
            show_names=show_names,
            data=json_for_page(data),
            sidecars=blocks(gathered.sidecars()),
            sheets=map(base64_text, gathered.sheets()),
        )
    )
    stream.enable_buffering(_PIECES)
    stream.dump(file, encoding="utf-8", errors="backslashreplace")


def _policy(style: str, script: str, *, pictures: str) -> str:
    """Return what a page may do: its own style and script, and pictures from where it says."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            f"img-src {pictures}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"sha256-{base64_text(hashlib.sha256(text.encode()).digest())}"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=size_text, span=time_text, number=_number, words=_words, filters=filters_text
    )
    environment.globals.update(counted=counted, segments=_segments, balances=balances)
    return environment


def _number(value: float) -> str:
    return f"{value:,}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _segments(sums: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
    """Yield the parts of a bar 1,000 long, each with where it begins and how long it is.

    What is there at all can be seen.
    """
    there = {name: n for name, n in sums.items() if n}
    whole = sum(there.values())
    least = 6.0
    lengths = {name: max(least, 1000 * n / whole) for name, n in there.items()}
    scale = 1000 / sum(lengths.values()) if lengths else 1.0
    at = 0.0
    for name, length in lengths.items():
        yield name, round(at, 2), round(length * scale, 2)
        at += length * scale
