"""Where images lie: what every kind of destination can do."""

from __future__ import annotations

from bulkfetch.archive.base import Archive, Identity, Stage
from bulkfetch.archive.local import LocalArchive

__all__ = ["Archive", "Identity", "LocalArchive", "Stage"]
