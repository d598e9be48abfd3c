"""What an archive in a directory of this machine holds: looked at, and never written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from bulkfetch.archive import files
from bulkfetch.archive.base import Holdings
from bulkfetch.errors import ArchiveMismatchError
from bulkfetch.models import SCHEMA_VERSION, FileInfo, Sidecar, UnlistedSidecar
from bulkfetch.plan import Held, Level, Place
from bulkfetch.words import counted

_SIDECAR = re.compile(r"(?P<image>.+)\.v(?P<version>[0-9]+)(?:\.r[0-9]+)?\.json", re.DOTALL)
_ENDING = re.compile("[a-z]+")
# A template may have directories above the patient's that a row does not tell; so many are tried.
_BRANCHES_AT_MOST = 1_000

log = logging.getLogger(__name__)


def look(
    root: Path,
    places: Sequence[Place],
    directories: Collection[str],
    *,
    rehash: bool,
    with_others: bool = False,
) -> Holdings:
    """Return what directories hold of some places, and of other images if that is wanted.

    Raises:
        OSError, PathRefusedError: a directory cannot be looked into.
    """
    found: dict[Place, Held] = {}
    others: dict[Place, Held] = {}
    superseded: list[Place] = []
    newest: dict[str, int] = {}
    listed = {_image_of(place) for place in places}
    for path in directories:
        with (
            suppress(FileNotFoundError),
            files.descriptor(root) as above,
            files.subdirectory(path, above) as directory,
        ):
            names = frozenset(os.listdir(directory))  # noqa: PTH208  of a descriptor
            for place in places:
                if place.directory == path and place.sidecar(1) in names:
                    found[place] = _held(place, directory, names, rehash=rehash)
            if not with_others:
                continue
            latest = _latest(names)
            for image, version in latest.items():
                if image not in listed and version >= newest.get(image, 0):
                    newest[image] = version
                    place = Place(path, f"{image}.v{version}")
                    others[place] = _held(place, directory, names, rehash=False)
            superseded += (
                place
                for place in places
                if place.directory == path and place not in found and _image_of(place) in latest
            )
    # An earlier version may lie in another directory, as the template has it.
    others = {place: held for place, held in others.items() if _is_newest(place, newest)}
    return Holdings([found.get(place) for place in places], others, superseded)


def paths_of(root: Path, levels: Sequence[Level], above: str = "") -> Iterator[str]:
    """Yield the directories that levels stand for, whether or not the last of them is there."""
    (text, is_whole), below = levels[0], levels[1:]
    for name in [text] if is_whole else _branches(root / above, text):
        if below:
            yield from paths_of(root, below, f"{above}{name}/")
        else:
            yield f"{above}{name}"


def _branches(directory: Path, text: str) -> list[str]:
    with suppress(OSError), os.scandir(directory) as entries:
        found = (entry.name for entry in entries if entry.name.startswith(text))
        names = list(islice(found, _BRANCHES_AT_MOST + 1))
        if len(names) <= _BRANCHES_AT_MOST:
            return names
        _warn_of_branches()
    return []


def _held(place: Place, directory: int, names: frozenset[str], *, rehash: bool) -> Held:
    revision = 1
    while place.sidecar(revision + 1) in names:
        revision += 1
    try:
        state = parse_sidecar(files.read(place.sidecar(revision), directory))
    except (ValueError, OSError, RecursionError):
        return Held(None, revision, "its sidecar cannot be read")
    damage = _damage(place, state.file, directory, rehash=rehash) if state.file else None
    return Held(state, revision, damage)


def _image_of(place: Place) -> str:
    return place.stem.rpartition(".v")[0]


def _latest(names: Collection[str]) -> Mapping[str, int]:
    """Return the latest version of each image in a directory."""
    latest: dict[str, int] = {}
    for name in names:
        if name.endswith(".json") and (match := _SIDECAR.fullmatch(name)):
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


def _damage(place: Place, file: FileInfo, directory: int, *, rehash: bool) -> str | None:
    stem, _, ending = file.path.rpartition(".")
    if stem != place.stem or not _ENDING.fullmatch(ending):
        return "its sidecar names a file that is not its own"
    try:
        found = os.stat(file.path, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            return "its file is no regular file"
        if found.st_size != file.size:
            return f"its file has {counted(found.st_size, 'byte')}, not {file.size:,}"
        if rehash:
            opened = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            with os.fdopen(opened, "rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    return "its file's SHA-256 is another"
    except FileNotFoundError:
        return "its file is missing"
    return None
