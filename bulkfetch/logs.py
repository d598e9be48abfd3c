"""Log lines on standard error, as text or JSON, with every secret taken out on the way.

All that bulkfetch shows or writes of an error's text passes `redact`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeAlias

from tqdm import tqdm

Field: TypeAlias = str | float | Mapping[str, int] | None

HIDDEN = "[hidden]"
_QUERY = re.compile(r"(?i)((?:https?|s3|gs|az)://[^\s?\"'<>]+)\?[^\s\"'<>]*")
_USER = re.compile(r"(?i)((?:https?|s3|gs|az)://)[^\s/?#\"'<>]+@")
# A value in quotes may hold anything; one without ends where the next begins.
_CREDENTIAL = re.compile(
    r"(?i)(\bbearer\s+|(?:signature|credential|googleaccessid|access_token|client_secret)"
    r"[\"']?\s*(?:[:=]|%3d)\s*)"
    r"(?:\"(?:\\.|[^\"\\])*\"?|'(?:\\.|[^'\\])*'?|[^\s&\"',}]+)"
)
# A JSON Web Token, wherever it stands: three dotted parts, the first of which is `{"` in base64.
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")

# What would move a terminal's cursor, or begin a line that looks like another's.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class LogLevel(StrEnum):
    """How much is said: a level takes in those after it."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class Event(StrEnum):
    """What a log line of bulkfetch tells, by a name that stays: docs/operations.md has them all."""

    run_started = "run_started"
    run_finished = "run_finished"
    run_failed = "run_failed"
    progress = "progress"
    patient_failed = "patient_failed"
    image_failed = "image_failed"
    image_moved = "image_moved"
    image_damaged = "image_damaged"
    image_of_another_patient = "image_of_another_patient"
    sidecar_unreadable = "sidecar_unreadable"
    retrying = "retrying"
    throttled = "throttled"
    service_paused = "service_paused"
    service_still_failing = "service_still_failing"
    service_recovered = "service_recovered"
    signed_in = "signed_in"
    process_died = "process_died"
    process_failed = "process_failed"
    process_silent = "process_silent"
    process_not_started = "process_not_started"
    worker_waiting = "worker_waiting"
    worker_not_started = "worker_not_started"
    bounds_lowered = "bounds_lowered"
    too_many_directories = "too_many_directories"
    lease_waited_for = "lease_waited_for"
    forecast_forgets = "forecast_forgets"
    metrics_served = "metrics_served"
    metrics_not_written = "metrics_not_written"
    row_repeated = "row_repeated"
    variable_unknown = "variable_unknown"
    listing_repeated = "listing_repeated"
    listing_restarted = "listing_restarted"


class LogFormat(StrEnum):
    """How a line looks."""

    text = "text"
    json = "json"


def stamp(moment: datetime) -> str:
    """Return a time as the API writes its own: in UTC, to the millisecond, with a Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def about(event: Event, **fields: Field) -> Mapping[str, object]:
    """Return the `extra` of a log line: what it tells, for programs; None fields are left out."""
    return {"event": event, "fields": fields}


def event_of(record: logging.LogRecord) -> Event | None:
    """Return what a line tells, None where it is another library's."""
    event: Event | None = getattr(record, "event", None)
    return event


def fields_of(record: logging.LogRecord) -> Mapping[str, Field]:
    """Return the fields of a line, without secrets."""
    fields: Mapping[str, Field] = getattr(record, "fields", {})
    return {
        name: redact(value) if isinstance(value, str) else value
        for name, value in fields.items()
        if value is not None
    }


def redact(text: str) -> str:
    """Return the text without signed URLs' queries, tokens and credentials."""
    text = _QUERY.sub(rf"\1?{HIDDEN}", text)
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _CREDENTIAL.sub(rf"\1{HIDDEN}", text)
    return _JWT.sub(HIDDEN, text)


def plain(text: str) -> str:
    """Return the text with an escape for whatever would move a cursor or begin another line."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Send log lines to standard error, above the progress bar where there is one.

    Other libraries' warnings go the same way, so that nothing passes by `redact`.
    """
    handler = _AboveTheBar()
    handler.setFormatter(_JSONLines() if log_format is LogFormat.json else _TextLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("bulkfetch").setLevel(level.upper())


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(redact(f"{record.levelname.lower()}: {record.getMessage()}"))


class _JSONLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": stamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if (event := event_of(record)) is not None:
            line["event"] = event
        line["message"] = redact(record.getMessage())
        # In ASCII, so that it is JSON, and one line, in every encoding and to every reader.
        return json.dumps({**line, **fields_of(record)})
