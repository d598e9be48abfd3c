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
from bulkfetch.archive.destination import Destination, tree_at
from bulkfetch.archive.tree import Tree

__all__ = [
    "KEPT_OVER_BYTES",
    "Archive",
    "Destination",
    "Growing",
    "Identity",
    "Kept",
    "Mark",
    "Stage",
    "Tree",
    "Writer",
    "tree_at",
]
