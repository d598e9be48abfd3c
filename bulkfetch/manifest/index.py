"""Which rows repeat an earlier one: found on disk, so that memory does not grow with the rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bulkfetch.errors import DestinationError, ManifestError

PRAGMAS = (
    "journal_mode = OFF",  # nothing of it outlives the run
    "synchronous = OFF",
    "cache_size = -1024",  # KiB: also what one sort keeps in memory; more made it no faster
    "temp_store = FILE",
)

# Rows are appended as they come and sorted once. An index kept while inserting costs a random
# page per row, and a digest instead of the IDs was slower (it sorts no faster, and must be made).
TABLES = """
CREATE TABLE seen (line INTEGER PRIMARY KEY, patient_id TEXT, coverage_id TEXT);
CREATE TABLE repeats (
    line INTEGER PRIMARY KEY, first INTEGER, patient_id TEXT, coverage_id TEXT
);
"""
FIND_REPEATS = """
INSERT INTO repeats
SELECT line, first, patient_id, coverage_id FROM (
    SELECT *, first_value(line) OVER (PARTITION BY patient_id, coverage_id ORDER BY line) AS first
    FROM seen
)
WHERE line > first ORDER BY line
"""


def private_database(*, any_thread: bool = False) -> sqlite3.Connection:
    """Return an empty database in the temporary directory, unlinked as soon as it is opened.

    `any_thread` may use it, one after the other; else only the one that opened it.

    Raises:
        sqlite3.Error: the temporary directory is full or cannot be written.
    """
    database = sqlite3.connect("", check_same_thread=not any_thread)
    for pragma in PRAGMAS:
        database.execute(f"PRAGMA {pragma}")
    return database


@contextmanager
def on_disk(what: str) -> Iterator[None]:
    """Turn SQLite's word on a private database into a `DestinationError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise DestinationError(
            f"{what} cannot be kept in the temporary directory ({error}): make "
            "room there, or name another by TMPDIR"
        ) from error


class Index:
    """A private SQLite database in the temporary directory, unlinked as soon as it is opened.

    Raises:
        ManifestError: the temporary directory is full or cannot be written.
    """

    def __init__(self) -> None:
        # The passes may run in different threads, one after the other.
        with _on_disk():
            self._db = private_database(any_thread=True)
            self._db.executescript(TABLES)

    def fill(self, keys: Iterable[tuple[int, str | None, str | None]]) -> int:
        """Stores (line, patient ID, coverage ID) of every row, and returns how many they are."""
        with _on_disk():
            return self._db.executemany("INSERT INTO seen VALUES (?, ?, ?)", keys).rowcount

    def find_repeats(self) -> int:
        """Compares all rows, and returns how many repeat an earlier one."""
        with _on_disk():
            return self._db.execute(FIND_REPEATS).rowcount

    def repeats(self, *, limit: int = -1) -> Iterator[tuple[int, int, str | None, str | None]]:
        """Yields (line, line it repeats, patient ID, coverage ID) in order of lines.

        `limit` is how many at most; -1 is all.
        """
        with _on_disk():
            yield from self._db.execute("SELECT * FROM repeats ORDER BY line LIMIT ?", (limit,))

    def close(self) -> None:
        """Gives the disk space back."""
        self._db.close()


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ManifestError(
            f"The list of rows seen cannot be kept in the temporary directory ({error}): "
            "make room there, or name another by TMPDIR"
        ) from error
