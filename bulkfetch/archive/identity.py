"""Whose archive it is, as its `archive.json` says."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from bulkfetch.archive.base import LAYOUT, Identity
from bulkfetch.archive.tree import NO_FILE, Tree, read
from bulkfetch.errors import ArchiveMismatchError, ConfigurationError
from bulkfetch.logs import plain
from bulkfetch.paths import PRIVATE, parse_template

IDENTITY_PATH = f"{PRIVATE}/archive.json"
_LONGEST_BYTES = 2**16


class _Layout(BaseModel):
    # What else stands there in another layout is not known here.
    layout: int


def identity_of(tree: Tree) -> Identity | None:
    """Return whose archive it is, None where there is none.

    Raises:
        ArchiveMismatchError: its layout is another, or what it says cannot be.
        OSError: it cannot be read.
    """
    try:
        text = read(tree, IDENTITY_PATH, _LONGEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise _damaged(tree, f"no regular file ({error.strerror})") from None
    return parsed(tree, text)


def parsed(tree: Tree, text: bytes) -> Identity:
    """Return what an `archive.json` says.

    Raises:
        ArchiveMismatchError: its layout is another, or what it says cannot be.
    """
    try:
        layout = _Layout.model_validate_json(text).layout
        if layout != LAYOUT:
            raise ArchiveMismatchError(
                f"{tree.name} is an archive with layout {layout}, and this version of bulkfetch "
                f"knows {LAYOUT}: use the version that made it, or name another directory"
            )
        identity = Identity.model_validate_json(text)
    except ValidationError:
        raise _damaged(tree, "torn or changed") from None
    try:
        parse_template(identity.path_template)
    except ValueError as error:
        raise _damaged(tree, f"changed: its path_template {error}") from None
    return identity


def archive_at(tree: Tree) -> Identity:
    """Return whose archive it is.

    Raises:
        ConfigurationError: there is none, or it is not as this version of bulkfetch makes them.
        OSError: it cannot be read.
    """
    identity = identity_of(tree)
    if identity is None:
        raise ConfigurationError(
            f"{tree.name} is no archive: there is no {tree.name}/{IDENTITY_PATH}; name the "
            "directory that download had as --out"
        )
    return identity


def identity_for(tree: Tree, wanted: Identity) -> Identity | None:
    """Return the same, for a run that wants to write there; None where there is no archive yet.

    Raises:
        ArchiveMismatchError: it is an archive of another account or template, or as for
            `identity_of`.
        OSError: it cannot be read.
    """
    found = identity_of(tree)
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
                f"{tree.name} is an archive with the {what} {plain(theirs)}, and this run's is "
                f"{ours}: {advice}, or name another directory with --out"
            )
    return found


def claimed(tree: Tree, identity: Identity, organization_id: str) -> Identity:
    """Return an identity that names its organization.

    Raises:
        ArchiveMismatchError: it names another one already.
    """
    known = identity.organization_id
    if known not in (None, organization_id):
        raise ArchiveMismatchError(
            f"{tree.name} is the archive of organization {plain(known)}, and these credentials are "
            f"of organization {plain(organization_id)}: name another directory with --out"
        )
    return identity.model_copy(update={"organization_id": organization_id})


def _damaged(tree: Tree, how: str) -> ArchiveMismatchError:
    return ArchiveMismatchError(
        f"{tree.name}/{IDENTITY_PATH} is {how}: restore it from a copy; or move it away, and "
        "download with this archive's own account and --path-template writes it anew; or name "
        "another directory"
    )
