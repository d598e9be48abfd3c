"""How far a run is, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Never, Protocol

from tqdm import tqdm

from bulkfetch.journal import Tally
from bulkfetch.models import PatientState
from bulkfetch.words import counted

PLAIN_EVERY_S = 5.0
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class ProgressStyle(StrEnum):
    """How progress is shown; `auto` is a bar on a terminal and plain lines elsewhere."""

    auto = "auto"
    bar = "bar"
    plain = "plain"
    none = "none"


class Progress(Protocol):
    """Something that is shown the sums of a run some times a second."""

    def show(self, tally: Tally) -> None:
        """Show the sums as they are now."""

    def close(self) -> None:
        """Leave the terminal tidy."""


class NoProgress:
    """Shows nothing."""

    def show(self, tally: Tally) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class BarProgress:
    """One line that is drawn over: patients, time left, images, bytes, rate, failures."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None

    def show(self, tally: Tally) -> None:
        """Draw the bar anew."""
        bar = self._bar
        if bar is None:
            bar = self._bar = tqdm(
                (),
                total=tally.total,
                unit="",
                file=sys.stderr,
                dynamic_ncols=True,
                leave=False,
                mininterval=0,
                # What may be cut off on a narrow terminal comes last; `postfix` brings a comma.
                bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} patients, "
                "{remaining} left{postfix}",
            )
        elapsed_s = bar.format_dict["elapsed"]
        bar.n = tally.done
        bar.set_postfix_str(_numbers(tally, elapsed_s), refresh=True)

    def close(self) -> None:
        """Clear the bar away."""
        if self._bar is not None:
            self._bar.close()


class PlainProgress:
    """A line every few seconds, for a log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = self._last = clock()

    def show(self, tally: Tally) -> None:
        """Print a line, if the last one is long enough ago."""
        now = self._clock()
        if now - self._last < PLAIN_EVERY_S:
            return
        self._last = now
        elapsed_s = now - self._started
        left = ""
        if tally.done:
            left_s = elapsed_s * (tally.total - tally.done) / tally.done
            left = f", {tqdm.format_interval(left_s)} left"
        tqdm.write(
            f"{tally.done:,}/{counted(tally.total, 'patient')}{left}, {_numbers(tally, elapsed_s)}",
            file=sys.stderr,
        )

    def close(self) -> None:
        """Do nothing."""


def progress_for(style: ProgressStyle) -> Progress:
    """Return what shows progress in a style."""
    if style is ProgressStyle.auto:
        style = ProgressStyle.bar if sys.stderr.isatty() else ProgressStyle.plain
    if style is ProgressStyle.bar:
        return BarProgress()
    return PlainProgress() if style is ProgressStyle.plain else NoProgress()


def size_text(size_bytes: float) -> str:
    """Return a size for people, in decimal units."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    text = tqdm.format_sizeof(size_bytes, "", 1000)
    return f"{text[:-1]} {text[-1]}B"


def time_text(seconds: float) -> str:
    """Return a time span for people, in its two largest units."""
    whole = round(seconds)
    for (size, unit), (smaller, below) in itertools.pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size:,} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def _numbers(tally: Tally, elapsed_s: float) -> str:
    failed = tally.patients[PatientState.failed]
    rate = size_text(tally.bytes / elapsed_s) if elapsed_s else "0 B"
    numbers = f"{counted(tally.listed, 'image')}, {size_text(tally.bytes)}, {rate}/s"
    first = [f"{failed} failed"] if failed else []
    if tally.hindrance:
        first.append(tally.hindrance)
    return ", ".join([*first, numbers])
