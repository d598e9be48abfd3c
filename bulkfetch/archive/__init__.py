"""Where images lie: what every kind of destination can do."""

from __future__ import annotations

from bulkfetch.archive.base import Archive, Identity, Kept, Mark, Stage
from bulkfetch.archive.local import LocalArchive

__all__ = ["Archive", "Identity", "Kept", "LocalArchive", "Mark", "Stage"]
