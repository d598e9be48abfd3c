"""Log lines on standard error, as text or JSON, with every secret taken out on the way.

All that bulkfetch shows or writes of an error's text passes `redact`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum

from tqdm import tqdm

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


class LogFormat(StrEnum):
    """How a line looks."""

    text = "text"
    json = "json"


def stamp(moment: datetime) -> str:
    """Return a time as the API writes its own: in UTC, to the millisecond, with a Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
        line = {
            "at": stamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        return json.dumps(line, ensure_ascii=False)
