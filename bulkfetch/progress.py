"""How far a run is, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Never, Protocol

from tqdm import tqdm

from bulkfetch.logs import Event, LogFormat, about
from bulkfetch.models import PatientState
from bulkfetch.rates import Rate, Speed
from bulkfetch.tally import Tally
from bulkfetch.words import counted

PLAIN_EVERY_S = 5.0
# A rate is that of so many seconds, to follow a change at once.
RATE_OVER_S = 10
# Such as ` 36% ` and a bar of two characters and a space.
_SHARE_AND_BAR = 8
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

log = logging.getLogger(__name__)


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


class Several:
    """Shows the same in several ways."""

    def __init__(self, *each: Progress) -> None:
        self._each = each

    def show(self, tally: Tally) -> None:
        """Show the sums in each."""
        for one in self._each:
            one.show(tally)

    def close(self) -> None:
        """Close each."""
        for one in self._each:
            one.close()


class BarProgress:
    """Two lines that are drawn over: patients and time left, and below what happens of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._speed = Speed(RATE_OVER_S, clock)
        self._lines: list[tqdm[Never]] = []
        self._columns = 0

    def show(self, tally: Tally) -> None:
        """Draw the lines anew."""
        columns = _columns_of_the_terminal()
        if not self._lines:
            self._lines = [
                _line(0, "{percentage:3.0f}% {bar} {desc}", total=tally.total),
                _line(1, "{desc}"),
            ]
        elif columns != self._columns:
            # Whatever the terminal made of the lines as it was resized is below the cursor.
            self._lines[0].fp.write("\r\x1b[J")
            for line in self._lines:
                # It would write spaces over what stood there, which are too many now.
                line.sp = line.status_printer(line.fp)
        self._columns = columns
        _note(self._speed, tally)
        first, second = self._lines
        first.n = tally.done
        done = _done(tally, self._speed.rate)
        if len(done) > columns - _SHARE_AND_BAR:
            done = done.replace(" patients", "")
        first.set_description_str(done)
        second.set_description_str(_fitting(_numbers(tally, self._speed.rate), columns - 1))
        # The cursor waits at the beginning, which stays there when the terminal is resized.
        first.fp.write("\r")
        first.fp.flush()

    def close(self) -> None:
        """Clear the lines away."""
        for line in reversed(self._lines):
            line.close()
        self._lines = []


class PlainProgress:
    """A line every few seconds, for a log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._speed = Speed(RATE_OVER_S, clock)

    def show(self, tally: Tally) -> None:
        """Print a line, if the last one is long enough ago."""
        _note(self._speed, tally)
        now = self._clock()
        if now - self._last >= PLAIN_EVERY_S:
            self._last = now
            self._tell(tally, self._speed.rate)

    def close(self) -> None:
        """Do nothing."""

    def _tell(self, tally: Tally, rate: Rate) -> None:
        words = ", ".join([_done(tally, rate), *_numbers(tally, rate)])
        tqdm.write(words, file=sys.stderr)


class LoggedProgress(PlainProgress):
    """The same as log lines."""

    def _tell(self, tally: Tally, rate: Rate) -> None:
        log.info(
            "%s",
            _done(tally, rate),
            extra=about(
                Event.progress,
                done=tally.done,
                patients=tally.patient_sums().model_dump(),
                images=tally.image_sums().model_dump(),
                bytes=tally.bytes,
                retries=tally.measures.retries.total(),
                patients_per_s=rate.patients_per_s,
                images_per_s=rate.images_per_s,
                bytes_per_s=rate.bytes_per_s,
                left_s=_left_s(tally, rate),
                hindrance=tally.hindrance,
            ),
        )


def progress_for(style: ProgressStyle, log_format: LogFormat = LogFormat.text) -> Progress:
    """Return what shows progress in a style, where log lines have this form."""
    if style is ProgressStyle.auto:
        can_draw = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        style = ProgressStyle.bar if can_draw else ProgressStyle.plain
    if style is ProgressStyle.bar:
        return BarProgress()
    if style is ProgressStyle.none:
        return NoProgress()
    return LoggedProgress() if log_format is LogFormat.json else PlainProgress()


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


def _line(position: int, bar_format: str, total: int | None = None) -> tqdm[Never]:
    return tqdm(
        (),
        total=total,
        position=position,
        bar_format=bar_format,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=False,
        mininterval=0,
    )


def _columns_of_the_terminal() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80


def _note(speed: Speed, tally: Tally) -> None:
    speed.note(tally.done, tally.images.total(), tally.bytes)


def _left_s(tally: Tally, rate: Rate) -> float | None:
    """Seconds to the end at the present rate; None where there is no end in sight."""
    if tally.is_paused or not rate.patients_per_s:
        return None
    return (tally.total - tally.done) / rate.patients_per_s


def _done(tally: Tally, rate: Rate) -> str:
    left_s = _left_s(tally, rate)
    left = "" if left_s is None else f", {tqdm.format_interval(left_s)} left"
    return f"{tally.done:,}/{counted(tally.total, 'patient')}{left}"


def _numbers(tally: Tally, rate: Rate) -> Sequence[str]:
    """What there is to tell besides, the most important first."""
    failed, retries = tally.patients[PatientState.failed], tally.measures.retries.total()
    numbers = [tally.hindrance] if tally.hindrance else []
    if failed:
        numbers.append(f"{failed:,} failed")
    if retries:
        numbers.append(f"{retries:,} retries" if retries > 1 else "1 retry")
    if not tally.listed:
        return numbers
    return [
        *numbers,
        f"{_short(rate.images_per_s)} images/s",
        f"{size_text(rate.bytes_per_s)}/s",
        counted(tally.listed, "image"),
        size_text(tally.bytes),
    ]


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _fitting(words: Sequence[str], columns: int) -> str:
    """Join the words that there is room for, so that none is cut in two."""
    text = ""
    for word in words:
        longer = f"{text}, {word}" if text else word
        if len(longer) <= columns:
            text = longer
    return text
