"""Bytes that did not come to their end: what is there already, of which object, and whose.

A part lies beside its final name, and tells which shard's run, and which of its processes, wrote
it, so that no two write to the same one. What object a long one is of stands in
`.bulkfetch/parts/`, so that the next run knows of it without looking through the whole archive.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bulkfetch.archive import files
from bulkfetch.archive.base import Kept, Mark
from bulkfetch.errors import PathRefusedError
from bulkfetch.plan import Place

# A part that nobody came back for in a week is of an image that changed, or of no one's manifest.
KEEP_S = 7 * 24 * 3600.0
# What a run may leave half-made beside images, and below `.bulkfetch`; other names are not ours.
_OWNER = r"(?:\.(?P<owner>[0-9]+-of-[0-9]+))?(?:\.[0-9a-z]+-[0-9]+)?"
_IMAGE_PART = re.compile(rf"\..+\.v[0-9]+(?:(?:\.r[0-9]+)?\.json)?{_OWNER}\.part", re.DOTALL)
PRIVATE_PART = re.compile(rf"\.(?:archive|summary|progress|[0-9a-f]{{32}})\.json{_OWNER}\.part")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: str
    stem: str
    owner: str = ""
    process: str = ""
    mark: Mark


def part_name(name: str, owner: str, process: str = "") -> str:
    """What a file is called before it has its name."""
    return "." + ".".join(filter(None, (name, owner, process, "part")))


class Parts:
    """The parts of an archive, for one owner; those that no run can be writing become its own.

    Args:
        process: where several processes of a run write side by side, which of which run: `a1b2c3-1`
            for the first; "" where there is but one.
    """

    def __init__(self, root: Path, directory: Path, owner: str, process: str = "") -> None:
        self._root = root
        self._directory = directory
        self._owner = owner
        self._process = process
        self._entries: dict[Place, _Entry] = {}

    def name(self, name: str) -> str:
        """What a file is called before it has its name, in this run."""
        return part_name(name, self._owner, self._process)

    def load(self) -> None:
        """Read what earlier runs left of long bodies; drop what is too old or has no part."""
        if not self._directory.is_dir():
            return
        _, _, count = self._owner.partition("-of-")
        run, _, _ = self._process.partition("-")
        oldest = time.time() - KEEP_S
        for path in self._directory.glob("*.json"):
            try:
                entry = _Entry.model_validate_json(path.read_bytes())
                is_old = path.stat().st_mtime < oldest
            except FileNotFoundError:
                continue
            except (OSError, ValidationError):
                path.unlink(missing_ok=True)
                continue
            is_ours = entry.owner in ("", self._owner)
            if not is_ours and entry.owner.endswith(f"-of-{count}"):
                # A shard that may be at work beside this one.
                continue
            if is_ours and self._process and entry.process.startswith(f"{run}-"):
                # Another process of this run.
                continue
            place = Place(entry.directory, entry.stem)
            self._entries[place] = entry
            if is_old or self._size(entry) is None:
                self.remove(place)

    def sweep(self, depth: int, dead: Mapping[str, float]) -> None:
        """Remove the parts that dead runs left, but for those that can be continued.

        Args:
            depth: how many directories lie above an image.
            dead: since when each of their owners ran; what did not change since is not looked into.
        """
        if not dead:
            return
        since = min(dead.values())
        kept = {(entry.directory, self._part(entry)) for entry in self._entries.values()}

        def clear(directory: int, path: str, below: int, ours: re.Pattern[str]) -> None:
            with os.scandir(directory) as entries:
                # Another shard may be clearing away the same.
                for entry in entries:
                    with suppress(FileNotFoundError):
                        state = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(state.st_mode):
                            if below and (below > 1 or state.st_mtime >= since):
                                descend(directory, path, entry.name, below - 1, ours)
                        elif (
                            not below
                            and stat.S_ISREG(state.st_mode)
                            and (part := ours.fullmatch(entry.name))
                            and (part["owner"] or "") in dead
                            and (path, entry.name) not in kept
                        ):
                            os.unlink(entry.name, dir_fd=directory)

        def descend(parent: int, path: str, name: str, below: int, ours: re.Pattern[str]) -> None:
            # What this user may not read holds nothing of ours.
            with (
                suppress(FileNotFoundError, PermissionError, PathRefusedError),
                files.subdirectory(name, parent) as directory,
            ):
                clear(directory, f"{path}/{name}".lstrip("/"), below, ours)

        with files.descriptor(self._root) as root:
            clear(root, "", depth, _IMAGE_PART)
            for name, below in ((".bulkfetch", 0), (".bulkfetch/parts", 0), (".bulkfetch/runs", 1)):
                descend(root, "", name, below, PRIVATE_PART)

    def find(self, place: Place) -> Kept | None:
        """Return what is there of an image, None where nothing is."""
        entry = self._entries.get(place)
        if entry is None:
            return None
        try:
            if (entry.owner, entry.process) != (self._owner, self._process):
                with (
                    files.descriptor(self._root) as root,
                    files.subdirectory(place.directory, root) as directory,
                ):
                    files.rename(directory, self._part(entry), self.name(place.stem))
                self._path(entry).unlink(missing_ok=True)
                self.remember(place, entry.mark)
                entry = self._entries[place]
        except (OSError, PathRefusedError):
            del self._entries[place]
            return None
        size = self._size(entry)
        return Kept(mark=entry.mark, size=size) if size else None

    def remember(self, place: Place, mark: Mark) -> None:
        """Note which object a part is of, before there is one."""
        files.make_directory(self._directory)
        entry = _Entry(
            directory=place.directory,
            stem=place.stem,
            owner=self._owner,
            process=self._process,
            mark=mark,
        )
        path = self._path(entry)
        with files.descriptor(self._directory) as directory:
            data = entry.model_dump_json().encode()
            files.write_whole(directory, self.name(path.name), path.name, data, durable=False)
        self._entries[place] = entry

    def remove(self, place: Place) -> None:
        """Remove an image's part and what is known of it, if anything is."""
        entry = self._entries.pop(place, None)
        if entry is None:
            return
        with (
            suppress(OSError, PathRefusedError),
            files.descriptor(self._root) as root,
            files.subdirectory(place.directory, root) as directory,
        ):
            os.unlink(self._part(entry), dir_fd=directory)
        with suppress(OSError):
            self._path(entry).unlink()

    def _size(self, entry: _Entry) -> int | None:
        try:
            with (
                files.descriptor(self._root) as root,
                files.subdirectory(entry.directory, root) as directory,
            ):
                found = os.stat(self._part(entry), dir_fd=directory, follow_symlinks=False)
        except (OSError, PathRefusedError):
            return None
        return found.st_size if 0 < found.st_size < entry.mark.total else None

    def _path(self, entry: _Entry) -> Path:
        key = f"{entry.directory}/{entry.stem}/{entry.owner}"
        if entry.process:
            key += f"/{entry.process}"
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    @staticmethod
    def _part(entry: _Entry) -> str:
        return part_name(entry.stem, entry.owner, entry.process)
