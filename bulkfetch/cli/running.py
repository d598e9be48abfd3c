"""Doing a run for a person: signals, progress, and the table at the end."""

from __future__ import annotations

import asyncio
import signal
import sys

from bulkfetch.models import ImageSums, PatientSums, Summary
from bulkfetch.pipeline import Run
from bulkfetch.progress import size_text

EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


async def do(run: Run) -> Summary | int:
    """Do a run that Ctrl-C and SIGTERM end in order.

    Returns its summary, or the exit status where it was interrupted before it began.
    """
    loop = asyncio.get_running_loop()
    status = 0

    def interrupt(number: signal.Signals) -> None:
        nonlocal status
        status = EXIT_STATUS[number]
        run.interrupt(status)

    for number in EXIT_STATUS:
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await run()
    except asyncio.CancelledError:
        if not status:
            raise
        say("interrupted before anything was fetched")
        return status
    finally:
        for number in EXIT_STATUS:
            loop.remove_signal_handler(number)


def show(summary: Summary, out: str, failures_path: str | None) -> None:
    """Print the sums, and what to do next."""
    say(table(summary.patients, summary.images))
    rate = size_text(summary.bytes / summary.seconds) if summary.seconds else "0 B"
    say(
        f"\n{size_text(summary.bytes)} in {summary.seconds:.1f} s ({rate}/s), "
        f"{summary.retries} retries; run {summary.run_id}"
    )
    if summary.duplicate_rows:
        say(f"{summary.duplicate_rows} manifest rows repeat others and were fetched once")
    if summary.dry_run:
        say("dry run: nothing was written; what is 'downloaded' above would be")
    if summary.interrupted or summary.patients.not_reached:
        say("not all was reached: run the same command again to go on from here")
    if failures_path:
        say(
            f"{summary.patients.failed} failed: see {failures_path}; "
            f"to try these again:\n  bulkfetch download {failures_path} --out {out}"
        )


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
    print(text, file=sys.stderr)  # noqa: T201  this is where words go
