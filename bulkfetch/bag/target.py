"""Where a bag comes to lie: what each form of it can do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from bulkfetch.archive import Tree, files
from bulkfetch.archive.tree import LocalTree
from bulkfetch.errors import ConfigurationError
from bulkfetch.verification import Source


class Target(Protocol):
    """A bag on its way to its name, which it has once it is whole.

    Leaving its context without `commit` leaves nothing behind. Every method raises
    `DestinationError` where the bag cannot be written.
    """

    @property
    def where(self) -> str:
        """Where the bag will be."""

    def take(self, directory: int, path: str, source: Source) -> None:
        """Add a file of the archive to the payload; see `bulkfetch.verification.Take`."""

    def put(self, path: str, source: Source) -> None:
        """Add a tag file."""

    def commit(self) -> None:
        """Give the whole bag its name, and see that it is on the disk."""


def outside(to: str, archive: Tree, option: str) -> Path:
    """Return where a bag is to be.

    Raises:
        ConfigurationError: it would be a part of the archive.
        DestinationError: the directory in which it would be is not there.
    """
    with files.named(to):
        path = Path(os.path.realpath(to))
    if isinstance(archive, LocalTree) and path.is_relative_to(archive.root):
        raise ConfigurationError(
            f"{to} is in the archive, which a bag cannot be a part of: name another with {option}"
        )
    files.check_parent(path, option)
    return path
