"""Where images lie: what every kind of destination can do."""

from __future__ import annotations

from bulkfetch.archive.base import KEPT_OVER_BYTES, Archive, Identity, Kept, Mark, Stage
from bulkfetch.archive.local import LocalArchive, Writer

__all__ = [
    "KEPT_OVER_BYTES",
    "Archive",
    "Identity",
    "Kept",
    "LocalArchive",
    "Mark",
    "Stage",
    "Writer",
]
