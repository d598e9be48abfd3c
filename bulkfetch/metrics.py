"""A run's numbers for Prometheus: in a file for node_exporter's textfile collector, and on a port.

No label names a patient, an image, a run or a person. `docs/operations.md` has all of them. It
needs prometheus-client, an extra, and is imported where that is asked for.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bulkfetch._version import __version__
from bulkfetch.errors import BulkfetchError, ConfigurationError
from bulkfetch.logs import Event, about
from bulkfetch.measures import BOUNDS_S, Histogram
from bulkfetch.models import PatientState
from bulkfetch.settings import Address
from bulkfetch.tally import Tally

WRITE_EVERY_S = 5.0

log = logging.getLogger(__name__)


class Metrics(Collector):
    """Tells the sums of a run as it is shown them; a context, within which they can be had.

    The file is written every `WRITE_EVERY_S` seconds and at the end, each time as a whole. Its
    name without the ending is the label `export`, which tells several on a machine apart.

    Attributes:
        exit_status: that of the command; 1 unless it is told, or an error tells it.

    Raises:
        ConfigurationError: the file cannot be written, or the address not be served at.
    """

    def __init__(self, file: Path | None, address: Address | None, shard: str | None) -> None:
        self.exit_status = 1
        self._file = file
        self._address = address
        self._info = {"version": __version__, "shard": shard or ""}
        # A name may hold what is no UTF-8.
        self._export = os.fsencode(file.stem).decode("utf-8", "replace") if file else "bulkfetch"
        self._started_at = time.time()
        self._ended_at: float | None = None
        # Replaced as a whole, since other threads read it.
        self._tally = Tally()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._is_over = threading.Event()
        self._writer = threading.Thread(
            target=self._write_at_times, args=(file,), name="metrics", daemon=True
        )
        self._server: WSGIServer | None = None

    def __enter__(self) -> Self:
        if self._address is not None:
            self._server = self._serving(self._address)
        if self._file is not None:
            try:
                self._write(self._file)
            except OSError as error:
                raise ConfigurationError(f"--metrics-file {self._file}: {error.strerror}") from None
            self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, BulkfetchError):
            self.exit_status = error.exit_status
        elif isinstance(error, KeyboardInterrupt):
            self.exit_status = 130
        self._ended_at = time.time()
        self._is_over.set()
        if self._file is not None:
            self._writer.join()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def show(self, tally: Tally) -> None:
        """Take the sums as they are now."""
        shown = tally + Tally()
        shown.in_flight, shown.kept_back = tally.in_flight, tally.kept_back
        shown.is_paused = tally.is_paused
        self._tally = shown

    def close(self) -> None:
        """Do nothing: the sums can be had to the end of the context."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        tally, measures, ended_at = self._tally, self._tally.measures, self._ended_at
        yield self._gauges("run_info", "the version, and the shard of a manifest", self._info)
        yield self._gauge("run_start_timestamp_seconds", "when it began", self._started_at)
        yield self._gauge("run_update_timestamp_seconds", "when this was told", time.time())
        if ended_at is not None:
            yield self._gauge("run_finish_timestamp_seconds", "when it ended", ended_at)
            yield self._gauge("run_exit_status", "the exit status", self.exit_status)
        patients = tally.patient_sums().model_dump(exclude={"total"})
        if ended_at is None:
            # Until then, all that was not come to may still be.
            patients["not_reached"] = tally.patients[PatientState.not_reached]
        yield self._gauge("patients_expected", "patients in the manifest", tally.total)
        yield self._counts("patients", "patients that have ended", "state", patients)
        yield self._counts("failed_patients", "those that failed", "kind", tally.kinds)
        images = tally.image_sums().model_dump(exclude={"listed"})
        yield self._counts("images", "images of those patients", "outcome", images)
        yield self._count("image_bytes", "bytes of images written", tally.bytes)
        yield self._counts("retries", "tries after the first", "kind", measures.retries)
        yield self._count("throttled", "answers that it is too much", measures.throttled)
        yield self._gauge("queries_kept_back", "queries fewer at once", tally.kept_back)
        yield self._gauge("paused", "1 while a service is left alone", int(tally.is_paused))
        yield self._in_flight(tally)
        yield self._histogram("query", "from sending a query to its answer", measures.queries)
        yield self._histogram("download", "from asking for a file to its end", measures.downloads)

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"bulkfetch_{name}", what, labels=["export"])
        family.add_metric([self._export], value)
        return family

    def _gauges(self, name: str, what: str, labels: Mapping[str, str]) -> Metric:
        family = GaugeMetricFamily(f"bulkfetch_{name}", what, labels=["export", *labels])
        family.add_metric([self._export, *labels.values()], 1)
        return family

    def _in_flight(self, tally: Tally) -> Metric:
        family = GaugeMetricFamily(
            "bulkfetch_in_flight", "what is under way", labels=["export", "what"]
        )
        for what in ("patients", "queries", "downloads"):
            family.add_metric([self._export, what], getattr(tally.in_flight, what))
        return family

    def _count(self, name: str, what: str, value: float) -> Metric:
        family = CounterMetricFamily(f"bulkfetch_{name}", what, labels=["export"])
        family.add_metric([self._export], value)
        return family

    def _counts(self, name: str, what: str, label: str, counts: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(f"bulkfetch_{name}", what, labels=["export", label])
        for value, n in counts.items():
            family.add_metric([self._export, value], n)
        return family

    def _histogram(self, name: str, what: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(
            f"bulkfetch_{name}_duration_seconds", what, labels=["export"]
        )
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        sums = itertools.accumulate(histogram.counts)
        buckets = list(zip(bounds, sums, strict=True))
        family.add_metric([self._export], buckets, histogram.seconds)
        return family

    def _serving(self, address: Address) -> WSGIServer:
        try:
            server, _ = start_http_server(address.port, address.host, self._registry)
        except OSError as error:
            raise ConfigurationError(f"--metrics-port {address}: {error.strerror}") from None
        # Who hangs up gets no traceback among the log lines.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        log.info(
            "metrics are at http://%s/metrics",
            served := Address(address.host, server.server_port),
            extra=about(Event.metrics_served, host=served.host, port=served.port),
        )
        return server

    def _write(self, file: Path) -> None:
        write_to_textfile(str(file), self._registry)
        # node_exporter is another user, whatever umask a job has that keeps the rest to itself.
        file.chmod(0o644)

    def _write_at_times(self, file: Path) -> None:
        is_told = False
        is_last = False
        while not is_last:
            is_last = self._is_over.wait(WRITE_EVERY_S)
            try:
                self._write(file)
                is_told = False
            except OSError as error:
                if not is_told:
                    log.warning(
                        "--metrics-file %s cannot be written: %s; the run goes on",
                        file,
                        error.strerror,
                        extra=about(Event.metrics_not_written, error=error.strerror),
                    )
                is_told = True
