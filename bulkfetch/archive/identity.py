"""Whose archive a directory is, as its `archive.json` says."""

from __future__ import annotations

import stat
from pathlib import Path

from pydantic import BaseModel, ValidationError

from bulkfetch.archive import files
from bulkfetch.archive.base import LAYOUT, PRIVATE, Identity
from bulkfetch.errors import ArchiveMismatchError, ConfigurationError
from bulkfetch.logs import plain
from bulkfetch.paths import parse_template

_LONGEST_BYTES = 2**16


class _Layout(BaseModel):
    # What else stands there in another layout is not known here.
    layout: int


def identity_of(root: Path) -> Identity | None:
    """Return whose archive a directory is, None where it is none.

    Raises:
        ArchiveMismatchError: its layout is another, or what it says cannot be.
    """
    path = root / PRIVATE / "archive.json"
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
        text = files.read(path, at_most=_LONGEST_BYTES) if is_file else b""
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        layout = _Layout.model_validate_json(text).layout
        if layout != LAYOUT:
            raise ArchiveMismatchError(
                f"{root} is an archive with layout {layout}, and this version of bulkfetch knows "
                f"{LAYOUT}: use the version that made it, or name another directory"
            )
        identity = Identity.model_validate_json(text)
    except ValidationError:
        raise _damaged(path, "torn or changed" if is_file else "no regular file") from None
    try:
        parse_template(identity.path_template)
    except ValueError as error:
        raise _damaged(path, f"changed: its path_template {error}") from None
    return identity


def archive_at(out: str) -> Identity:
    """Return whose archive a directory is.

    Raises:
        ConfigurationError: it is none, or not as this version of bulkfetch makes them.
    """
    root = Path(out)
    identity = identity_of(root)
    if identity is None:
        why = "it is a file" if root.is_file() else f"there is no {root / PRIVATE / 'archive.json'}"
        raise ConfigurationError(
            f"{out} is no archive: {why}; name the directory that download had as --out"
        )
    return identity


def identity_for(root: Path, wanted: Identity) -> Identity | None:
    """Return the same, for a run that wants to write there.

    Raises:
        ArchiveMismatchError: it is an archive of another account or template, or as for
            `identity_of`.
    """
    found = identity_of(root)
    if found is None:
        return None
    for what, theirs, ours, advice in (
        ("API host", found.api_host, wanted.api_host, "correct --environment or --api-url"),
        (
            "path template", found.path_template, wanted.path_template,
            f"give --path-template '{found.path_template}'",
        ),
    ):  # fmt: skip
        if theirs != ours:
            raise ArchiveMismatchError(
                f"{root} is an archive with the {what} {plain(theirs)}, and this run's is {ours}: "
                f"{advice}, or name another directory with --out"
            )
    return found


def _damaged(path: Path, how: str) -> ArchiveMismatchError:
    return ArchiveMismatchError(
        f"{path} is {how}: restore it from a copy; or move it away, and download with this "
        "archive's own account and --path-template writes it anew; or name another directory"
    )
