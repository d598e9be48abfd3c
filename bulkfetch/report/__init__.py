"""One HTML page about an archive, to look at: what is there, what is not and why, and the pictures.

Only the page is written. It loads nothing and sends nothing, and is as private as the archive.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from bulkfetch.archive import Identity, Tree, files, tree_at
from bulkfetch.archive.identity import archive_at
from bulkfetch.archive.tree import LocalTree
from bulkfetch.chain import journals_of
from bulkfetch.limits import usable_cores
from bulkfetch.report.advice import ADVICE
from bulkfetch.report.facts import facts_of
from bulkfetch.report.gather import Gathered
from bulkfetch.report.images import images_of
from bulkfetch.report.page import MOST_IMAGES, write_page
from bulkfetch.report.pictures import PER_SHEET, Job
from bulkfetch.report.target import Target
from bulkfetch.report.thumbnails import sheets_of
from bulkfetch.report.timeline import Timeline
from bulkfetch.status import RunStatus, history
from bulkfetch.verification.events import ImageEvent, event_of
from bulkfetch.verification.findings import Checked
from bulkfetch.words import counted

__all__ = ["ADVICE", "make_report"]

# Each reads one image after the other; a store's answers are waited for.
_STORE_PROCESSES = 8
# Of the newest runs.
_MOST_TIMELINES = 30


def make_report(
    out: str,
    to: str,
    *,
    folder: bool = False,
    show_names: bool = False,
    thumbnails: int | None = None,
    processes: int | None = None,
    looked_at: Callable[[str, int], object] = lambda _what, _number: None,
) -> str:
    """Make a page of an archive, and return its path.

    Args:
        out: the archive's directory, which may be mounted read-only, or its URL.
        to: where the page goes; an earlier page there is replaced once the new one is whole.
        folder: the thumbnails lie in a directory beside it and not in it.
        show_names: people's names and notes, and the manifest's own columns, are in the page.
        thumbnails: how many there are at most; None is all.
        processes: how many make thumbnails side by side; None is as many as there are cores, or 8
            of a bucket.
        looked_at: told what was looked at, and how many more.

    Raises:
        ConfigurationError: there is no archive, or no page can be made there.
        DestinationError: the archive cannot be read, or the page cannot be written.
    """
    with files.named(out):
        tree = tree_at(out)
        identity = archive_at(tree)
    target = Target(to, tree, folder=folder)
    with Gathered() as gathered, target.whole() as file:
        with files.named(tree.name):
            status, runs = history(tree)
            notices = status.problems + _read_images(
                tree, identity, gathered, looked_at, show_names=show_names
            )
            timelines, more = _read_journals(tree, runs, gathered, looked_at)
        gathered.settle()
        facts = facts_of(
            tree, identity, gathered, status=status, runs=runs, notices=[*notices, *more]
        )
        if facts.sums.images > MOST_IMAGES:
            gathered.keep(MOST_IMAGES)
        usual = usable_cores() if isinstance(tree, LocalTree) else _STORE_PROCESSES
        for number, webp in _sheets(out, gathered, thumbnails, processes or usual, looked_at):
            if not target.add_sheet(number, webp):
                gathered.add_sheet(number, webp)
        write_page(
            file,
            facts,
            gathered,
            timelines,
            show_names=show_names,
            folder=target.way_to_sheets,
            archive=_way_to(tree, target),
        )
    return str(target.page)


def _read_images(
    tree: Tree,
    identity: Identity,
    gathered: Gathered,
    looked_at: Callable[[str, int], object],
    *,
    show_names: bool,
) -> list[str]:
    """Gather the images, and return what the reader should know besides, in words."""
    elsewhere = Checked()
    for images in images_of(tree, identity, elsewhere, show_names=show_names):
        gathered.add(images)
        looked_at("images", len(images))
    strays = len(elsewhere.findings)
    if not strays:
        return []
    return [f"{counted(strays, 'name')} in the archive is no image's: bulkfetch verify tells"]


def _read_journals(
    tree: Tree,
    runs: Sequence[RunStatus],
    gathered: Gathered,
    looked_at: Callable[[str, int], object],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Gather what the runs noted; return their timelines, and what the reader should know."""
    timelines: list[dict[str, Any]] = []
    torn = 0
    for run in runs:
        timeline = Timeline()
        with suppress(FileNotFoundError):
            for path in journals_of(tree, run.run_id):
                torn += _read_journal(tree, path, run.run_id, gathered, timeline)
                looked_at("journals", 1)
        step_s, steps = timeline.steps()
        if steps and len(timelines) < _MOST_TIMELINES:
            timelines.append({"run": run.run_id, "step": step_s, "steps": steps})
    if not torn:
        return timelines, []
    what = f"{counted(torn, 'line')} of journals cannot be read"
    return timelines, [f"{what}, as the last one of a killed run may be: bulkfetch verify tells"]


def _read_journal(
    tree: Tree, path: str, run_id: str, gathered: Gathered, timeline: Timeline
) -> int:
    """Take in a journal, and return how many of its lines are none."""
    torn = 0
    with files.named(f"{tree.name}/{path}"), tree.open(path) as journal:
        for line in journal:
            event = event_of(line)
            if event is None:
                torn += 1
                continue
            gathered.note(run_id, event)
            if isinstance(event, ImageEvent):
                timeline.note(event)
    return torn


def _sheets(
    out: str,
    gathered: Gathered,
    at_most: int | None,
    processes: int,
    looked_at: Callable[[str, int], object],
) -> Iterator[tuple[int, bytes]]:
    """Yield sheets of thumbnails by their numbers, and note which image is where on them."""
    if at_most == 0:
        return
    jobs = (Job(*row) for row in gathered.with_files(-1 if at_most is None else at_most))
    for number, (batch, sheet) in enumerate(sheets_of(out, jobs, processes)):
        places = range(number * PER_SHEET, (number + 1) * PER_SHEET)
        gathered.note_thumbnails(
            (place if is_made else -1, job.path)
            for place, job, is_made in zip(places, batch, sheet.made, strict=False)
        )
        looked_at("thumbnails", len(batch))
        yield number, sheet.webp


def _way_to(tree: Tree, target: Target) -> str | None:
    """Return how a link in the page leads to the archive, None where no link can."""
    if not isinstance(tree, LocalTree):
        return None
    return quote(os.fsencode(os.path.relpath(tree.root, target.page.parent)))
