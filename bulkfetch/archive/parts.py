"""Long bodies that did not come to their end: what is there already, and of which object.

A part lies beside its final name. What object it is of stands in `.bulkfetch/parts/`, so that the
next run knows of it without looking through the whole archive.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bulkfetch.archive import files
from bulkfetch.archive.base import Kept, Mark
from bulkfetch.errors import PathRefusedError
from bulkfetch.plan import Place

# A part that nobody came back for in a week is of an image that changed, or of no one's manifest.
KEEP_S = 7 * 24 * 3600.0


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: str
    stem: str
    mark: Mark


def part_name(place: Place) -> str:
    """The name of a part, beside the final one."""
    return f".{place.stem}.part"


class Parts:
    """The parts of an archive."""

    def __init__(self, root: Path, directory: Path) -> None:
        self._root = root
        self._directory = directory
        self._marks: dict[Place, Mark] = {}

    def load(self) -> None:
        """Read what earlier runs left; drop what is too old, and entries without a part."""
        if not self._directory.is_dir():
            return
        oldest = time.time() - KEEP_S
        for path in self._directory.iterdir():
            try:
                entry = _Entry.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                path.unlink(missing_ok=True)
                continue
            place = Place(entry.directory, entry.stem)
            self._marks[place] = entry.mark
            if path.stat().st_mtime < oldest or self.find(place) is None:
                self.remove(place)

    def find(self, place: Place) -> Kept | None:
        """Return what is there of an image, None where nothing is."""
        mark = self._marks.get(place)
        if mark is None:
            return None
        try:
            with (
                files.descriptor(self._root) as root,
                files.subdirectory(place.directory, root) as directory,
            ):
                size = os.stat(part_name(place), dir_fd=directory, follow_symlinks=False).st_size
        except (OSError, PathRefusedError):
            return None
        return Kept(mark=mark, size=size) if 0 < size < mark.total else None

    def remember(self, place: Place, mark: Mark) -> None:
        """Note which object a part is of, before there is one."""
        files.make_directory(self._directory)
        entry = _Entry(directory=place.directory, stem=place.stem, mark=mark)
        with files.descriptor(self._directory) as directory:
            name = self._entry(place)
            data = entry.model_dump_json().encode()
            files.write_whole(directory, f".{name}.part", name, data, durable=False)
        self._marks[place] = mark

    def remove(self, place: Place) -> None:
        """Remove an image's part and what is known of it, if anything is."""
        if self._marks.pop(place, None) is None:
            return
        with (
            suppress(OSError, PathRefusedError),
            files.descriptor(self._root) as root,
            files.subdirectory(place.directory, root) as directory,
        ):
            os.unlink(part_name(place), dir_fd=directory)
        with suppress(OSError):
            (self._directory / self._entry(place)).unlink()

    @staticmethod
    def _entry(place: Place) -> str:
        return hashlib.sha256(f"{place.directory}/{place.stem}".encode()).hexdigest()[:32] + ".json"
