"""Where images lie: what every kind of destination can do."""

from __future__ import annotations

from bulkfetch.archive.base import (
    KEPT_OVER_BYTES,
    Archive,
    Growing,
    Identity,
    Kept,
    Mark,
    Stage,
    Writer,
)
from bulkfetch.archive.local import LocalArchive
from bulkfetch.archive.tree import LocalTree, Tree

__all__ = [
    "KEPT_OVER_BYTES",
    "Archive",
    "Growing",
    "Identity",
    "Kept",
    "LocalArchive",
    "LocalTree",
    "Mark",
    "Stage",
    "Tree",
    "Writer",
]
