"""Doing a run for a person: signals, progress, and the table at the end."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bulkfetch.logs import plain
from bulkfetch.models import ImageSums, PatientSums, Summary, ToFetch
from bulkfetch.progress import size_text
from bulkfetch.words import counted, filters_text

if TYPE_CHECKING:
    # Commands without a network do without what it takes to load it.
    from bulkfetch.pipeline import Run

# 128 and the signal's number, as shells count.
EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


async def do(run: Run) -> Summary | int:
    """Do a run that Ctrl-C, SIGTERM and a lost terminal end in order.

    Returns its summary, or the exit status where it was interrupted before it began.
    """
    status = 0

    def interrupt(exit_status: int) -> None:
        nonlocal status
        status = exit_status
        run.interrupt(status)

    with heeding_signals(interrupt):
        try:
            return await run()
        except asyncio.CancelledError:
            if not status:
                raise
            say("interrupted before anything was fetched")
            return status


@contextmanager
def heeding_signals(interrupt: Callable[[int], None]) -> Iterator[None]:
    """Call `interrupt` with the exit status for each Ctrl-C, SIGTERM and lost terminal."""
    loop = asyncio.get_running_loop()
    # Under `nohup` a hang-up is to be ignored, and stays so.
    heeded = [n for n in EXIT_STATUS if signal.getsignal(n) is not signal.SIG_IGN]
    for number in heeded:
        loop.add_signal_handler(number, interrupt, EXIT_STATUS[number])
    try:
        yield
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and a lost terminal end what is done as Ctrl-C does, so that it clears away."""

    def end(number: int, _frame: FrameType | None) -> None:
        say("interrupted: nothing was made")
        sys.exit(EXIT_STATUS[signal.Signals(number)])

    heeded = [n for n in EXIT_STATUS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(summary: Summary, out: str, *, may_go_on: bool = True) -> None:
    """Print the sums, and what to do next; `may_go_on` unless an error says something else."""
    patients, images = summary.patients, summary.images
    say(table(patients, images))
    rate = size_text(summary.bytes / summary.seconds) if summary.seconds else "0 B"
    say(
        f"\n{size_text(summary.bytes)} in {summary.seconds:.1f} s ({rate}/s), "
        f"retries: {summary.retries}{'' if summary.dry_run else f'; run {plain(summary.run_id)}'}"
    )
    if summary.head:
        say(f"head {summary.head}\n  (keep it elsewhere: verify --head holds the archive to it)")
    for remark in _remarks(summary):
        say(remark)
    if summary.dry_run:
        say("dry run: nothing was written; what is 'downloaded' above would be")
    if summary.to_fetch:
        say(_size_to_fetch(summary.to_fetch))
    if images.filtered and images.filtered == images.listed:
        say("every image was filtered out: is that as the API says it?")
    if patients.empty > patients.total / 2:
        say("most patients have no image: are these IDs of this account?")
    if patients.not_reached and may_go_on:
        say("not all was reached: run the same command again to go on from here")
    if summary.failures:
        again = shlex.join(["bulkfetch", "download", summary.failures, "--out", out])
        kinds = kinds_text(summary.failed_by_kind)
        say(plain(f"{patients.failed} failed{kinds and f' ({kinds})'}: see {summary.failures}"))
        say(f"to try these again, with the same other options:\n  {plain(again)}")


def _remarks(summary: Summary) -> Iterator[str]:
    """Yield what the table does not tell: of images, and of rows that have some in common."""
    if summary.images.filtered:
        yield plain(f"filtered by {filters_text(summary.filters)}")
    if summary.unlisted:
        became = ", ".join(f"{n:,} {word}" for word, n in summary.unlisted.items())
        noted = "to be noted" if summary.dry_run else "noted in sidecars"
        yield f"in the archive and no longer listed: {became.replace('_', ' ')}; {noted}"
    if summary.duplicate_rows:
        yield f"manifest rows that repeat others, and were fetched once: {summary.duplicate_rows:,}"
    if summary.listed_again:
        again = counted(summary.listed_again, "image")
        yield f"listed by several rows, counted at each and fetched once: {again}"


def _size_to_fetch(to_fetch: ToFetch) -> str:
    sized, estimated = to_fetch.sized, to_fetch.estimated_bytes
    known = f"to fetch: {counted(to_fetch.images, 'image')}"
    if sized:
        known += f", {size_text(to_fetch.bytes)} for {sized:,} of them, whose size is known"
    if sized == to_fetch.images:
        return known
    if estimated is None:
        return f"{known}; the API does not tell their size"
    return (
        f"{known}; an estimate for all is {size_text(estimated)}, by the mean of "
        f"{counted(to_fetch.estimated_from, 'file')} in the archive, "
        "since the API does not tell their size"
    )


def kinds_text(kinds: Mapping[str, int]) -> str:
    """Tell failures by their kind."""
    return ", ".join(f"{kind}: {n:,}" for kind, n in kinds.items())


def table(patients: PatientSums, images: ImageSums) -> str:
    """Lay the two sums side by side, each with its total below."""
    left = [(name, n) for name, n in patients.model_dump().items() if name != "total"]
    right = [(name, n) for name, n in images.model_dump().items() if name != "listed"]
    left += [("", None)] * (len(right) - len(left))
    lines = [f"{'patients':<12}{'':>10}    {'images':<14}{'':>10}".rstrip()]
    for (name, n), (other, m) in zip(left, right, strict=True):
        shown = "" if n is None else f"{n:,}"
        lines.append(f"  {name:<12}{shown:>8}      {other:<12}{m:>10,}".replace("_", " "))
    lines.append(f"  {'total':<12}{patients.total:>8,}      {'listed':<12}{images.listed:>10,}")
    return "\n".join(lines)


def say(text: str) -> None:
    """Print words for a person."""
    print(text, file=sys.stderr)


def program() -> str:
    """How this program can be called from here."""
    if shutil.which("bulkfetch"):
        return "bulkfetch"
    here = Path(sys.argv[0])
    return str(here) if here.name == "bulkfetch" else f"{sys.executable} -m bulkfetch"
