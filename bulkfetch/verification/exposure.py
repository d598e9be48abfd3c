"""Whether others on the machine may get at what is in an archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from bulkfetch.archive import files
from bulkfetch.errors import PathRefusedError
from bulkfetch.verification.findings import Checked, Kind

# No archive has more directories, one in another: eight of the template's, below quarantine.
_DEEPEST = 12


def check_exposure(root: int) -> Checked:
    """Name what is open to others, as one finding, given a descriptor of the archive's root.

    That is what lies below it and gives them any right, where each directory on the way lets them
    through: where the root does not, nothing. The group's rights are no finding, since who shares
    an archive does so by them: a group of its own, or a list of access rights.
    """
    checked = Checked()
    number, example = 0, ""
    if os.fstat(root).st_mode & stat.S_IXOTH:
        for path in _exposed(root, "", _DEEPEST):
            number += 1
            example = min(example or path, path)
    if number:
        so_too = f", and at {number - 1:,} more" if number > 1 else ""
        checked.find(Kind.exposed, example, f"others on this machine may get at it{so_too}")
    return checked


def _exposed(directory: int, path: str, below: int) -> Iterator[str]:
    # What vanishes is a run's at work, and what cannot be looked into is named elsewhere.
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError, PathRefusedError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode) or not mode & stat.S_IRWXO:
                    continue
                yield f"{path}{entry.name}"
                if below and stat.S_ISDIR(mode) and mode & stat.S_IXOTH:
                    with files.subdirectory(entry.name, directory) as inside:
                        yield from _exposed(inside, f"{path}{entry.name}/", below - 1)
