"""What a dry run tells of each patient."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping

from tqdm import tqdm

from bulkfetch.forecast import PatientForecast, Why
from bulkfetch.logs import plain
from bulkfetch.models import json_text
from bulkfetch.progress import size_text
from bulkfetch.words import counted

# A person reads no more; a program reads all of them.
_LINES_AT_MOST = 100
_THINGS = {Why.new_image, Why.new_version}


class Teller:
    """Prints each patient: a line for a program, or one for a person where there is work to do.

    Attributes:
        lost: why standard output takes no more; then `stop` was called, once.
    """

    def __init__(self, stop: Callable[[], None], *, as_json: bool) -> None:
        self._stop = stop
        self._as_json = as_json
        self._lines = 0
        self.lost: OSError | None = None

    def __call__(self, forecast: PatientForecast) -> None:
        """Print a patient."""
        if self.lost is not None:
            return
        try:
            if self._as_json:
                print(json_text({"patient": forecast}))
            elif work := _work(forecast):
                self._say(f"{_label(forecast)}: {work}")
        except OSError as error:
            self.lost = error
            self._stop()

    def _say(self, line: str) -> None:
        self._lines += 1
        if self._lines <= _LINES_AT_MOST:
            tqdm.write(plain(line), sys.stderr)
        elif self._lines == _LINES_AT_MOST + 1:
            tqdm.write("... and more: --json has a line for every patient", sys.stderr)


def _label(forecast: PatientForecast) -> str:
    named = (("patient", forecast.patient_id), ("coverage", forecast.coverage_id))
    return ", ".join(f"{what} {identity}" for what, identity in named if identity)


def _work(forecast: PatientForecast) -> str:
    """Say what would be done about a patient; nothing where that is nothing.

    Of a failure a warning told.
    """
    fetched: Counter[str] = Counter(image.why for image in forecast.to_do if image.fetch)
    noted: Counter[str] = Counter(image.why for image in forecast.to_do if not image.fetch)
    noted.update(image.became for image in forecast.unlisted)
    size = sum(image.size_bytes or 0 for image in forecast.to_do)
    said = [_counts("to fetch", fetched) + (f" ({size_text(size)} known)" if size else "")]
    said.append(_counts("to note", noted))
    return "; ".join(filter(None, said))


def _counts(what: str, counts: Mapping[str, int]) -> str:
    told = ", ".join(
        counted(n, why.replace("_", " ")) if why in _THINGS else f"{n:,} {why.replace('_', ' ')}"
        for why, n in counts.items()
    )
    return f"{what} {told}" if told else ""
