"""Where images lie: what every kind of destination can do."""

from __future__ import annotations

from bulkfetch.archive.base import (
    KEPT_OVER_BYTES,
    Growing,
    Identity,
    Kept,
    Mark,
    OpenArchive,
    Stage,
    Writer,
)
from bulkfetch.archive.destination import Destination, tree_at
from bulkfetch.archive.tree import Tree

__all__ = [
    "KEPT_OVER_BYTES",
    "Destination",
    "Growing",
    "Identity",
    "Kept",
    "Mark",
    "OpenArchive",
    "Stage",
    "Tree",
    "Writer",
    "tree_at",
]
