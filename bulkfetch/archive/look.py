"""What directories of an archive hold: looked at, and never written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from bulkfetch.archive import files
from bulkfetch.archive.base import Holdings
from bulkfetch.errors import ArchiveMismatchError
from bulkfetch.logs import Event, about
from bulkfetch.models import SCHEMA_VERSION, FileInfo, Sidecar, UnlistedSidecar
from bulkfetch.paths import SIDECAR_NAME
from bulkfetch.plan import Held, Level, Place
from bulkfetch.words import counted

# A template may have directories above the patient's that a row does not tell; so many are tried.
_BRANCHES_AT_MOST = 1_000

log = logging.getLogger(__name__)


class Folder(Protocol):
    """A directory of images to look into; every method raises `OSError` where it cannot be read."""

    @property
    def names(self) -> Collection[str]:
        """What lies in it."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""

    def size(self, name: str) -> int | None:
        """Return a file's size; None where something else lies there."""

    def sha256(self, name: str) -> str:
        """Return the digest of a file's bytes, in hex."""


class LocalFolder:
    """A directory by its descriptor; see `Folder`."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self.names = frozenset(os.listdir(directory))

    def read(self, name: str) -> bytes:
        """See `Folder.read`."""
        descriptor = files.open_regular(name, self._directory)
        try:
            return files.read_to_end(descriptor)
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int | None:
        """See `Folder.size`."""
        found = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def sha256(self, name: str) -> str:
        """See `Folder.sha256`."""
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._directory)
        with os.fdopen(opened, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def local_folder(root: Path, path: str) -> Iterator[LocalFolder]:
    """Open a directory below an archive's root.

    Raises:
        OSError, PathRefusedError: it cannot be looked into.
    """
    with files.descriptor(root) as above, files.subdirectory(path, above) as directory:
        yield LocalFolder(directory)


def look(
    folder_at: Callable[[str], AbstractContextManager[Folder]],
    places: Sequence[Place],
    directories: Collection[str],
    *,
    rehash: bool,
    with_others: bool = False,
) -> Holdings:
    """Return what directories hold of some places, and of other images if that is wanted.

    `folder_at` opens a directory, and raises `FileNotFoundError` where there is none.

    Raises:
        OSError, PathRefusedError: a directory cannot be looked into.
    """
    found: dict[Place, Held] = {}
    others: dict[Place, Held] = {}
    superseded: list[Place] = []
    newest: dict[str, int] = {}
    listed = {_image_of(place) for place in places}
    for path in directories:
        with suppress(FileNotFoundError), folder_at(path) as folder:
            for place in places:
                if place.directory == path and place.sidecar(1) in folder.names:
                    found[place] = held_at(place, folder, rehash=rehash)
            if not with_others:
                continue
            latest = _latest(folder.names)
            for image, version in latest.items():
                if image not in listed and version >= newest.get(image, 0):
                    newest[image] = version
                    place = Place(path, f"{image}.v{version}")
                    others[place] = held_at(place, folder, rehash=False)
            superseded += (
                place
                for place in places
                if place.directory == path and place not in found and _image_of(place) in latest
            )
    # An earlier version may lie in another directory, as the template has it.
    others = {place: held for place, held in others.items() if _is_newest(place, newest)}
    return Holdings([found.get(place) for place in places], others, superseded)


def held_at(place: Place, folder: Folder, *, rehash: bool) -> Held:
    """Return what a directory holds at a place where there is a first sidecar.

    Raises:
        OSError, ArchiveMismatchError: as `Folder` and `parse_sidecar` do.
    """
    revision = 1
    while place.sidecar(revision + 1) in folder.names:
        revision += 1
    try:
        state = parse_sidecar(folder.read(place.sidecar(revision)))
    except (ValueError, OSError, RecursionError):
        return Held(None, revision, "its sidecar cannot be read")
    damage = _damage(place, state.file, folder, rehash=rehash) if state.file else None
    return Held(state, revision, damage)


def paths_of(
    branches: Callable[[str], Iterable[str]],
    levels: Sequence[Level],
    above: str = "",
    *,
    at_most: int = _BRANCHES_AT_MOST,
) -> Iterator[str]:
    """Yield the directories that levels stand for, whether or not the last of them is there.

    `branches` returns the names of the directories in one, none where it cannot be read; of one
    with more than `at_most` that could be meant, none is.
    """
    (text, is_whole), below = levels[0], levels[1:]
    names: Sequence[str] = [text]
    if not is_whole:
        found = (name for name in branches(above) if name.startswith(text))
        names = list(islice(found, at_most + 1))
        if len(names) > at_most:
            _warn_of_branches()
            return
    for name in names:
        if below:
            yield from paths_of(branches, below, f"{above}{name}/", at_most=at_most)
        else:
            yield f"{above}{name}"


def local_branches(root: Path, above: str) -> Iterator[str]:
    """Yield the names in a directory below an archive's root; none where it cannot be read."""
    with suppress(OSError), os.scandir(root / above) as entries:
        for entry in entries:
            yield entry.name


def names_of(place: Place, names: Iterable[str]) -> list[str]:
    """Return those of some names that are an image's: its sidecars first, then its file."""
    sidecar = re.compile(re.escape(place.stem) + r"(\.r[0-9]+)?\.json")
    ours = (name for name in names if sidecar.fullmatch(name) or place.owns(name))
    return sorted(ours, key=lambda name: not name.endswith(".json"))


def _image_of(place: Place) -> str:
    return place.stem.rpartition(".v")[0]


def _latest(names: Collection[str]) -> Mapping[str, int]:
    """Return the latest version of each image in a directory."""
    latest: dict[str, int] = {}
    for name in names:
        if name.endswith(".json") and (match := SIDECAR_NAME.fullmatch(name)):
            image = match["image"]
            latest[image] = max(latest.get(image, 0), int(match["version"]))
    return latest


def _is_newest(place: Place, newest: Mapping[str, int]) -> bool:
    image, _, version = place.stem.rpartition(".v")
    return int(version) == newest[image]


@cache
def _warn_of_branches() -> None:
    log.warning(
        "more than %d directories above the patients' (--path-template): images that are no longer "
        "listed are not looked for",
        _BRANCHES_AT_MOST,
        extra=about(Event.too_many_directories, at_most=_BRANCHES_AT_MOST),
    )


def parse_sidecar(raw: bytes) -> Sidecar:
    """Return the sidecar that a file holds.

    Raises:
        ValueError: it holds none, or not a whole one.
        ArchiveMismatchError: a later version of bulkfetch wrote it.
    """
    try:
        return Sidecar.model_validate_json(raw)
    except ValidationError:
        # A lone surrogate's escape is JSON to Python alone.
        values = json.loads(raw)
    schema = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise ArchiveMismatchError(
            f"a sidecar is of schema {schema}, which a later bulkfetch wrote: use that one"
        )
    kind = UnlistedSidecar if isinstance(values, dict) and "unlisted" in values else Sidecar
    return kind.model_validate(values)


def _damage(place: Place, file: FileInfo, folder: Folder, *, rehash: bool) -> str | None:
    if not place.owns(file.path):
        return "its sidecar names a file that is not its own"
    try:
        size = folder.size(file.path)
        if size is None:
            return "its file is no regular file"
        if size != file.size:
            return f"its file has {counted(size, 'byte')}, not {file.size:,}"
        if rehash and folder.sha256(file.path) != file.sha256:
            return "its file's SHA-256 is another"
    except FileNotFoundError:
        return "its file is missing"
    return None
