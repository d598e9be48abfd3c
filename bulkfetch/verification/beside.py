"""What lies beside the images, in `.bulkfetch`: whether all of it is bulkfetch's own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bulkfetch.archive import files
from bulkfetch.archive.parts import PRIVATE_PART
from bulkfetch.archive.segments import whole_name
from bulkfetch.chain import JOURNAL, RUN_ID
from bulkfetch.errors import PathRefusedError
from bulkfetch.paths import PRIVATE
from bulkfetch.verification.findings import Checked, Kind


@dataclass(frozen=True, slots=True)
class _Room:
    """What a directory may hold: files, and directories, of which None is not looked into."""

    files: re.Pattern[str]
    rooms: Mapping[re.Pattern[str], _Room | None] = field(default_factory=dict)


_NOT_OURS = "bulkfetch makes nothing like it here"
_OWNER = "(?:-[0-9]+-of-[0-9]+)?"
_RUN = _Room(
    re.compile(rf"{JOURNAL.pattern}|summary\.json|failures\.csv|progress\.json"),
)
_BESIDE = _Room(
    re.compile(rf"archive\.json|lock{_OWNER}|lease{_OWNER}\.json|holder{_OWNER}\.(?:json|new)"),
    {
        re.compile("runs"): _Room(re.compile("(?!)"), {RUN_ID: _RUN}),
        re.compile("parts"): _Room(re.compile(r"[0-9a-f]{32}\.json")),
        re.compile("quarantine"): None,
    },
)


def check_beside(root: int) -> Checked:
    """Name what is not bulkfetch's in `.bulkfetch`, given a descriptor of the archive's root.

    Nothing is read but names, and no link is followed. What is in quarantine is not looked at.
    """
    checked = Checked()
    _check(root, PRIVATE, PRIVATE, _BESIDE, checked)
    return checked


def check_name(path: str, checked: Checked) -> None:
    """Name an object below `.bulkfetch` in an object store, if it is not bulkfetch's."""
    room: _Room | None = _BESIDE
    *above, name = path.split("/")[1:]
    for directory in above:
        rooms = room.rooms if room else {}
        known = [below for pattern, below in rooms.items() if pattern.fullmatch(directory)]
        if known == [None]:
            return
        room = known[0] if known else None
    if room is None or not room.files.fullmatch(whole_name(name)):
        checked.find(Kind.stray, path, _NOT_OURS)


def _check(parent: int, name: str, path: str, room: _Room, checked: Checked) -> None:
    try:
        with files.subdirectory(name, parent) as directory, os.scandir(directory) as entries:
            for entry in entries:
                _check_entry(directory, entry, f"{path}/{entry.name}", room, checked)
    except FileNotFoundError:
        pass  # a run that ends clears away after itself
    except PathRefusedError:
        checked.find(Kind.link, path, "a symbolic link")
    except OSError as error:
        checked.find(Kind.unreadable, path, error.strerror or "it cannot be read")


def _check_entry(
    directory: int, entry: os.DirEntry[str], path: str, room: _Room, checked: Checked
) -> None:
    known = [below for pattern, below in room.rooms.items() if pattern.fullmatch(entry.name)]
    if entry.is_symlink():
        checked.find(Kind.link, path, "a symbolic link")
    elif known and entry.is_dir(follow_symlinks=False):
        if known[0]:
            _check(directory, entry.name, path, known[0], checked)
    elif not entry.is_file(follow_symlinks=False) or known:
        checked.find(Kind.stray, path, _NOT_OURS)
    elif PRIVATE_PART.fullmatch(entry.name):
        checked.find(Kind.part, path, "left half-made")
    elif not room.files.fullmatch(whole_name(entry.name)):
        checked.find(Kind.stray, path, _NOT_OURS)
