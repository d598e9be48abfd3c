"""Whose archive a directory is, as its `archive.json` says."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from bulkfetch.archive.base import LAYOUT, Identity
from bulkfetch.errors import ArchiveMismatchError, ConfigurationError
from bulkfetch.paths import PRIVATE


def identity_of(root: Path) -> Identity | None:
    """Return whose archive a directory is, None where it is none.

    Raises:
        ArchiveMismatchError: another version of bulkfetch wrote it.
    """
    path = root / PRIVATE / "archive.json"
    try:
        return Identity.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError:
        raise ArchiveMismatchError(
            f"{path} is not one that this version of bulkfetch wrote: name another directory"
        ) from None


def archive_at(out: str) -> Identity:
    """Return whose archive a directory is.

    Raises:
        ConfigurationError: it is none, or one of another version of bulkfetch.
    """
    identity = identity_of(Path(out))
    if identity is None:
        raise ConfigurationError(f"{out} is no archive: it has no {PRIVATE}/archive.json")
    return identity


def identity_for(root: Path, wanted: Identity) -> Identity | None:
    """Return the same, for a run that wants to write there.

    Raises:
        ArchiveMismatchError: it is an archive of another account, template or layout.
    """
    found = identity_of(root)
    if found is None:
        return None
    for what, theirs, ours, advice in (
        ("layout", found.layout, LAYOUT, "use the version of bulkfetch that made it"),
        ("API host", found.api_host, wanted.api_host, "correct --environment or --api-url"),
        (
            "path template", found.path_template, wanted.path_template,
            f"give --path-template '{found.path_template}'",
        ),
    ):  # fmt: skip
        if theirs != ours:
            raise ArchiveMismatchError(
                f"{root} is an archive with the {what} {theirs}, and this run's is {ours}: "
                f"{advice}, or name another directory with --out"
            )
    return found
