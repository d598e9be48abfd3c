"""Where earlier runs put images of a coverage, which may be any patient's directory.

A row with a patient's ID tells its directory; one with a coverage's alone does not. So the journals
are read once, when the first such row comes; what they say is kept on disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pydantic import BaseModel, TypeAdapter, ValidationError

from bulkfetch import chain
from bulkfetch.archive import Tree
from bulkfetch.manifest.index import on_disk, private_database

_KEPT = "where images of coverages are"
_IMAGE = b'{"event":"image"'
# A line of a patient's row has this near its beginning, and need not be parsed.
_OF_A_PATIENT = b'"patient_id":"'
_NEAR_BYTES = 80


class _Line(BaseModel):
    coverage_id: str
    directory: str


_LINE = TypeAdapter(_Line)


class Elsewhere:
    """Directories by coverage, as far as journals tell of rows without a patient."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._turn = asyncio.Lock()
        self._db: sqlite3.Connection | None = None

    async def of(self, coverage_id: str) -> Sequence[str]:
        """Return the directories in which a coverage's images were put.

        Raises:
            DestinationError: the temporary directory is full or cannot be written.
        """
        async with self._turn:
            if self._db is None:
                self._db = await asyncio.to_thread(self._read)
        with on_disk(_KEPT):
            found = self._db.execute(
                "SELECT directory FROM put WHERE coverage_id = ?", (coverage_id,)
            ).fetchall()
        return [directory for (directory,) in found]

    def close(self) -> None:
        """Let go of what is kept."""
        if self._db is not None:
            self._db.close()

    def _read(self) -> sqlite3.Connection:
        with on_disk(_KEPT):
            database = private_database(any_thread=True)
            database.execute(
                "CREATE TABLE put (coverage_id TEXT, directory TEXT, "
                "PRIMARY KEY (coverage_id, directory)) WITHOUT ROWID"
            )
            for run_id in chain.runs_of(self._tree):
                told = _told(self._tree, run_id)
                database.executemany("INSERT OR IGNORE INTO put VALUES (?, ?)", told)
        return database


def _told(tree: Tree, run_id: str) -> Iterator[tuple[str, str]]:
    # What cannot be read, `bulkfetch verify` names.
    with suppress(OSError):
        for path in chain.journals_of(tree, run_id):
            with suppress(OSError), tree.open(path) as file:
                yield from filter(None, map(_put_by, file))


def _put_by(line: bytes) -> tuple[str, str] | None:
    if not line.startswith(_IMAGE) or _OF_A_PATIENT in line[:_NEAR_BYTES]:
        return None
    try:
        told = _LINE.validate_json(line)
    except ValidationError:
        return None
    # A journal may have been tampered with: nothing else is a directory of images.
    if any(name.startswith(".") or not name for name in told.directory.split("/")):
        return None
    return told.coverage_id, told.directory
