"""Names on disk, made of what strangers wrote: none leaves the archive, and none meets another."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import NamedTuple

PRIVATE = ".bulkfetch"
"""Where an archive keeps what is no image, below its root."""

LONGEST_NAME = 100
_LONGEST_STEM = 40
_PLAIN = re.compile(r"[a-z0-9._-]+")
COVERAGE_PREFIX = "coverage-"

# Names that Windows keeps for devices, whatever follows their first dot:
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file. An archive may be copied there.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")

FILE_TEMPLATE = "{image_id}.v{version}"
SIDECAR_NAME = re.compile(
    r"(?P<stem>(?P<image>.+)\.v(?P<version>[0-9]+))"
    r"(?:\.r(?P<revision>[2-9]|[1-9][0-9]+))?\.json",
    re.DOTALL,
)
DEFAULT_TEMPLATE = f"{{patient_id}}/{FILE_TEMPLATE}"
# Those that a version of an image keeps, and that name nobody: docs/paths.md says why no others.
TEMPLATE_FIELDS = (
    "patient_id",
    "patient_hash",
    "coverage_id",
    "organization_id",
    "side",
    "image_id",
    "file_type",
    "updated_year",
    "updated_month",
)
_MOST_DIRECTORIES = 8
# What stands before a field ends in a sign that no device's name has, so that none can arise.
_DIRECTORY = re.compile(
    r"(?P<text>[a-z0-9][a-z0-9_=-]{0,49})?(?:(?<![a-z0-9])\{(?P<field>[a-z_]+)\})?"
)


class Directory(NamedTuple):
    """One directory of a path template: fixed text, then the value of a field if there is one."""

    text: str
    field: str | None


def safe_name(identity: str) -> str:
    """Return a file name for an ID: itself where it is harmless, else a stem and a digest.

    Harmless is what every file system keeps apart and none gives a meaning to: `[a-z0-9._-]`, at
    most 100 long, not beginning with `.`, `-` or `coverage-`, not ending in a dot, no device name.
    Anything else becomes what is harmless in it, `~` and 16 hex digits of its SHA-256, so that
    IDs which differ only in case, say, never meet. The ID itself is in the sidecar.
    """
    if (
        len(identity) <= LONGEST_NAME
        and _PLAIN.fullmatch(identity)
        and not identity.startswith((".", "-", COVERAGE_PREFIX))
        and not identity.endswith(".")
        and not _DEVICES.match(identity)
    ):
        return identity
    stem = "".join(_PLAIN.findall(identity.lower()))[:_LONGEST_STEM].strip(".-")
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if stem.startswith(COVERAGE_PREFIX) or _DEVICES.match(stem):
        stem = ""
    return f"{stem}~{digest}"


@cache
def parse_template(template: str) -> tuple[Directory, ...]:
    """Return the directories of a path template.

    Raises:
        ValueError: it does not end in what makes an image's name unique, or has a directory that is
            more than plain text and one field.
    """
    above, slash, file = template.rpartition("/")
    if file != FILE_TEMPLATE or not slash:
        raise ValueError(
            f"must be one directory or more, then /{FILE_TEMPLATE}, which keeps names apart"
        )
    parts = above.split("/")
    if len(parts) > _MOST_DIRECTORIES:
        raise ValueError(f"must have {_MOST_DIRECTORIES} directories at most")
    return tuple(_parse_directory(part) for part in parts)


def _parse_directory(part: str) -> Directory:
    found = _DIRECTORY.fullmatch(part)
    if not part or found is None or _DEVICES.match(part):
        raise ValueError(
            f"has the directory {part!r}: lower-case letters, digits, _, - and = may stand there, "
            "then a field such as {patient_id} alone or after one of these three signs"
        )
    text, field = found["text"] or "", found["field"]
    if field is not None and field not in TEMPLATE_FIELDS:
        known = ", ".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)
        raise ValueError(f"has no field {{{field}}} in a directory: {known} are known")
    return Directory(text, field)
