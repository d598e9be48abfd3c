"""What a simulator remembers of the requests it got: counts always, records when asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["RequestRecord", "Traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as it came, and the status it was answered with.

    `path` is without the query, since a storage query is a credential. `status` is 0 when the
    connection was reset before an answer began.
    """

    at: float
    endpoint: str
    method: str
    path: str
    patient_id: str | None
    coverage_id: str | None
    range: str | None
    if_range: str | None
    accept_encoding: str | None
    has_authorization: bool
    status: int


class Traffic:
    """Counts by endpoint."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.peak_in_flight: Counter[str] = Counter()
        """Most requests that were being answered at once."""
        self.log: list[RequestRecord] = []
        self._in_flight: Counter[str] = Counter()

    @contextmanager
    def request(self, endpoint: str) -> Iterator[None]:
        """Counts a request, and for as long as the context lasts counts it as in flight."""
        self.requests[endpoint] += 1
        self._in_flight[endpoint] += 1
        peak = max(self.peak_in_flight[endpoint], self._in_flight[endpoint])
        self.peak_in_flight[endpoint] = peak
        try:
            yield
        finally:
            self._in_flight[endpoint] -= 1

    def clear(self) -> None:
        """Forgets everything but what is in flight."""
        self.requests.clear()
        self.statuses.clear()
        self.peak_in_flight.clear()
        self.log.clear()
