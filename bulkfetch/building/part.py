"""The rows of a manifest that is being built, on disk, so that a killed build goes on from there.

A private SQLite database beside the manifest. The rows of a page and the place behind it are in one
transaction: what a kill leaves is never half a page.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self

from bulkfetch.archive import files
from bulkfetch.errors import DestinationError
from bulkfetch.manifest.index import private_database
from bulkfetch.models import Versioned, moment

_TABLES = """
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, text TEXT);
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY, kind INTEGER, id TEXT,
    version INTEGER, updated_at TEXT, updated_us INTEGER, wanted INTEGER,
    UNIQUE (kind, id)
);
"""
_BUILD = "build"
_EPOCH = moment("1970-01-01")


class Kind(IntEnum):
    """What a record is of."""

    patient = 0
    coverage = 1


class Seen(NamedTuple):
    """One version of a patient or coverage that was read."""

    id: str
    version: int
    updated_at: str


class Row(NamedTuple):
    """A row of the manifest; version and time are None where the API was not asked for them."""

    seq: int
    kind: Kind
    id: str
    version: int | None
    updated_at: str | None


class Part:
    """What was read so far; a context manager. Nothing is kept before `commit`.

    Args:
        path: of the database; None for one that nobody can go on from.
        build: what the build is of: a part of another one is begun anew.

    Attributes:
        is_resumed: whether it holds what an earlier build had read.

    Raises:
        DestinationError: it cannot be written, or another process is at it.
    """

    def __init__(self, path: Path | None, build: Mapping[str, object]) -> None:
        self._path = path
        self._counts: dict[Kind, int]
        told = json.dumps(build, sort_keys=True)
        with _on_disk(path):
            self._db = private_database(any_thread=True) if path is None else _opened(path)
            try:
                self.is_resumed = self.note(_BUILD) == told
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                self.is_resumed = False
            if not self.is_resumed:
                self._db.executescript("DROP TABLE IF EXISTS notes; DROP TABLE IF EXISTS records;")
                self._db.executescript(_TABLES)
                self.set_note(_BUILD, told)
                self.commit()
            query = "SELECT count(*) FROM records WHERE wanted AND kind = ?"
            # Counted once, and then kept up: counting anew at each page would grow with the rows.
            self._counts = {kind: self._db.execute(query, (kind,)).fetchone()[0] for kind in Kind}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def note(self, name: str) -> str | None:
        """Return what was noted under a name, such as the place to go on from."""
        row = self._db.execute("SELECT text FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_note(self, name: str, text: str) -> None:
        """Note something, in place of what had that name."""
        with _on_disk(self._path):
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, text))

    def known(self, kind: Kind, seen: Iterable[Seen]) -> None:
        """Note what an earlier manifest had: only another version of it makes a row."""
        with _on_disk(self._path):
            self._db.executemany(
                "INSERT INTO records VALUES (NULL, ?, ?, ?, ?, ?, 0)",
                ((kind, *one, microseconds(moment(one.updated_at))) for one in seen),
            )

    def add(self, kind: Kind, record: Versioned, *, wanted: bool) -> bool:
        """Note a record that was read, and return whether it makes a new row."""
        with _on_disk(self._path):
            had = self._had(kind, record.id)
            if had is not None and had[0] == record.version:
                return False
            is_new = wanted and not (had and had[1])
            if is_new or had is None:
                self._append(kind, record.id, wanted=wanted)
            self._db.execute(
                "UPDATE records SET version = ?, updated_at = ?, updated_us = ?"
                " WHERE kind = ? AND id = ?",
                (record.version, record.updated_at, microseconds(record.updated), kind, record.id),
            )
        return is_new

    def want(self, kind: Kind, identity: str) -> None:
        """See that there is a row, whatever version it is of."""
        with _on_disk(self._path):
            had = self._had(kind, identity)
            if had is None or not had[1]:
                self._append(kind, identity, wanted=True)

    def commit(self) -> None:
        """Keep all since the last time."""
        with _on_disk(self._path):
            self._db.commit()

    def count(self, kind: Kind) -> int:
        """Return how many rows there are."""
        return self._counts[kind]

    def rows(self, after: int = 0) -> Iterator[Row]:
        """Yield the manifest's rows in their order, those behind a row's `seq`."""
        with _on_disk(self._path):
            for seq, kind, *cells in self._db.execute(
                "SELECT seq, kind, id, version, updated_at FROM records"
                " WHERE wanted AND seq > ? ORDER BY seq",
                (after,),
            ):
                yield Row(seq, Kind(kind), *cells)

    def times(self) -> tuple[str | None, str | None]:
        """Return the first and the last time of update among the rows."""
        query = "SELECT updated_at FROM records WHERE wanted AND updated_us NOTNULL ORDER BY"
        first = self._db.execute(f"{query} updated_us LIMIT 1").fetchone()
        last = self._db.execute(f"{query} updated_us DESC LIMIT 1").fetchone()
        return (first[0], last[0]) if first else (None, None)

    def latest(self, kind: Kind, after_us: int, limit: int) -> list[Seen]:
        """Return what was read last, updated at or after a time, newest first."""
        return [
            Seen(*cells)
            for cells in self._db.execute(
                "SELECT id, version, updated_at FROM records WHERE kind = ? AND updated_us >= ?"
                " ORDER BY updated_us DESC, id LIMIT ?",
                (kind, after_us, limit),
            )
        ]

    def remove(self) -> None:
        """Remove the file: the manifest is whole."""
        self._db.close()
        if self._path is not None:
            with files.named(str(self._path)):
                self._path.unlink()

    def _had(self, kind: Kind, identity: str) -> tuple[int | None, bool] | None:
        query = "SELECT version, wanted FROM records WHERE kind = ? AND id = ?"
        row: tuple[int | None, bool] | None = self._db.execute(query, (kind, identity)).fetchone()
        return row

    def _append(self, kind: Kind, identity: str, *, wanted: bool) -> None:
        """Put a row at the end, also one that was there and makes no row of the manifest yet."""
        self._db.execute(
            "INSERT INTO records (kind, id, wanted) VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET wanted = excluded.wanted, seq = (SELECT max(seq) + 1 FROM records)",
            (kind, identity, wanted),
        )
        self._counts[kind] += wanted


def _opened(path: Path) -> sqlite3.Connection:
    """Open a part for this process alone; what is no database there is none of ours, and goes."""
    for attempt in (1, 2):
        with files.named(str(path)), files.descriptor(path.parent) as directory:
            os.close(files.create(path.name, directory, keep=True))
        database = sqlite3.connect(path, check_same_thread=False, timeout=0)
        try:
            # Held until it is closed, or its process dies.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            database.commit()
        except sqlite3.OperationalError:
            database.close()
            raise
        except sqlite3.DatabaseError:
            database.close()
            if attempt == 2:
                raise
            path.unlink()
        else:
            return database
    raise AssertionError


@contextmanager
def _on_disk(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise DestinationError(
                f"another build of this manifest is at work: it holds {path}"
            ) from error
        where = "the temporary directory" if path is None else str(path)
        raise DestinationError(f"{where} cannot be used: {error}") from error


def microseconds(at: datetime) -> int:
    """A time as a number that sorts."""
    return (at - _EPOCH) // timedelta(microseconds=1)
