"""What an archive's sidecars and journals tell of each image and patient, kept on disk.

It grows with the images, so it lies in a private database and not in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

from bulkfetch.manifest.index import on_disk, private_database
from bulkfetch.models import PatientState
from bulkfetch.report.images import Image
from bulkfetch.verification.events import Event, ImageEvent, PatientEvent

_KEPT = "what the report tells"
_LARGEST = 2**63 - 1
_COLUMNS = ", ".join(Image._fields)

_TABLES = f"""
CREATE TABLE images ({_COLUMNS}, thumbnail, PRIMARY KEY (path));
CREATE TABLE words (
    path PRIMARY KEY, image_id, patient_id, coverage_id, version, status, outcome, kind, error,
    at, seconds, run_id
);
CREATE TABLE patients (
    asked PRIMARY KEY, patient_id, coverage_id, state, kind, error, at, run_id
);
CREATE TABLE sheets (number INTEGER PRIMARY KEY, webp BLOB);
"""
# The later word holds; how long a download took is known to those alone that downloaded.
_NOTE_IMAGE = """
INSERT INTO words VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    status = excluded.status, outcome = excluded.outcome, kind = excluded.kind,
    error = excluded.error, at = excluded.at, seconds = coalesce(excluded.seconds, seconds),
    run_id = excluded.run_id
WHERE excluded.at >= at
"""
_NOTE_PATIENT = """
INSERT INTO patients VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    state = excluded.state, kind = excluded.kind, error = excluded.error, at = excluded.at,
    run_id = excluded.run_id
WHERE excluded.at >= at
"""
_SETTLE = """
UPDATE images SET seconds = words.seconds FROM words WHERE words.path = images.path;
UPDATE images SET state = 'failed', kind = words.kind, problem = words.error
FROM words WHERE words.path = images.path AND words.outcome = 'failed';
INSERT INTO images (
    path, image_id, patient_id, coverage_id, version, status, state, kind, problem, at, run_id
)
SELECT path, image_id, patient_id, coverage_id, version, status,
    CASE WHEN outcome IN ('failed', 'filtered', 'not_reached') THEN outcome ELSE 'missing' END,
    kind, error, at, run_id
FROM words WHERE path NOT IN (SELECT path FROM images);
"""


class FailedPatient(NamedTuple):
    """A row of a manifest of which the journals said last that it failed."""

    patient_id: str | None
    coverage_id: str | None
    kind: str | None
    error: str | None
    at: str
    run_id: str


class Sums(NamedTuple):
    """So many images, each version for itself; those with a file, and the bytes of the files."""

    images: int
    files: int
    bytes: int


class Gathered:
    """What was found; a context, at whose end it is gone.

    Every method raises `DestinationError` where the temporary directory is full.
    """

    def __init__(self) -> None:
        with on_disk(_KEPT):
            self._db = private_database()
            self._db.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, images: Iterable[Image]) -> None:
        """Take in images of the archive."""
        marks = ", ".join("?" * len(Image._fields))
        self._many(f"INSERT OR REPLACE INTO images ({_COLUMNS}) VALUES ({marks})", images)  # noqa: S608  marks

    def note(self, run_id: str, event: Event) -> None:
        """Take in a line of a run's journal; the last word on an image or a patient holds."""
        if isinstance(event, PatientEvent):
            asked = json.dumps([event.patient_id, event.coverage_id])
            word = (
                asked, event.patient_id, event.coverage_id, event.state, event.kind, event.error,
                event.at, run_id,
            )  # fmt: skip
            self._many(_NOTE_PATIENT, [word])
        elif isinstance(event, ImageEvent) and event.outcome:
            said = (
                event.image, event.image_id, event.patient_id, event.coverage_id, event.version,
                event.status, event.outcome, event.kind, event.error, event.at, event.seconds,
                run_id,
            )  # fmt: skip
            self._many(_NOTE_IMAGE, [said])

    def settle(self) -> None:
        """Say of each image what it has come to, now that all is read."""
        with on_disk(_KEPT):
            self._db.executescript(_SETTLE)

    def patient_sums(self) -> dict[str, int]:
        """Return how many manifest rows were last told to be in each state."""
        counted = dict(self._rows("SELECT state, count(*) FROM patients GROUP BY 1"))
        return {state: counted.get(state, 0) for state in PatientState}

    def failed_patients(self, at_most: int) -> list[FailedPatient]:
        """Return manifest rows that failed last, by their kind."""
        query = (
            "SELECT patient_id, coverage_id, kind, error, at, run_id FROM patients "
            "WHERE state = 'failed' ORDER BY kind, patient_id, coverage_id LIMIT ?"
        )
        return [FailedPatient(*row) for row in self._rows(query, at_most)]

    def failed_by_kind(self, table: str) -> dict[str, int]:
        """Return how many `images` or `patients` failed last, by the kind of their error."""
        return dict(
            self._rows(
                f"SELECT kind, count(*) FROM {table} WHERE state = 'failed' AND kind NOT NULL "  # noqa: S608  a name of ours
                "GROUP BY 1"
            )
        )

    def sums(self) -> Sums:
        """Return how much there is."""
        query = "SELECT count(*), count(file), total(size) FILTER (WHERE file NOT NULL) FROM images"
        images, with_file, size = next(self._rows(query))
        return Sums(images, with_file, int(size))

    def by(self, column: str) -> list[tuple[Any, int]]:
        """Return how many images there are of each value in a column, the most frequent first."""
        query = f"SELECT {column}, count(*) FROM images GROUP BY 1 ORDER BY 2 DESC, 1"  # noqa: S608  a name of ours
        return list(self._rows(query))

    def runs_that_filtered(self) -> set[str]:
        """Return the IDs of the runs whose filters left out what is not in the archive."""
        return {
            run
            for (run,) in self._rows("SELECT DISTINCT run_id FROM images WHERE state = 'filtered'")
        }

    def keep(self, at_most: int) -> None:
        """Forget images but so many: what is well goes first."""
        self._many(
            "DELETE FROM images WHERE rowid IN (SELECT rowid FROM images "
            "ORDER BY state = 'archived', path LIMIT -1 OFFSET ?)",
            [(at_most,)],
        )

    def with_files(self, at_most: int) -> Iterator[tuple[str, str, int]]:
        """Yield the paths, names and sizes of the files of the first images that have one."""
        query = "SELECT path, file, size FROM images WHERE file NOT NULL ORDER BY path LIMIT ?"
        # All at once, since they are changed while they are gone through.
        yield from list(self._rows(query, at_most))

    def images(self) -> Iterator[tuple[Image, int | None]]:
        """Yield the images in the order of their paths, each with its thumbnail's number."""
        columns = _COLUMNS.replace("sidecar", "NULL")
        for *values, thumbnail in self._rows(
            f"SELECT {columns}, thumbnail FROM images ORDER BY path"  # noqa: S608  names of ours
        ):
            yield Image(*values), thumbnail

    def sidecars(self) -> Iterator[str]:
        """Yield their sidecars in the same order; "" where there is none that can be read."""
        for (sidecar,) in self._rows("SELECT coalesce(sidecar, '') FROM images ORDER BY path"):
            yield sidecar

    def note_thumbnails(self, numbers: Iterable[tuple[int, str]]) -> None:
        """Note the numbers of thumbnails, each with its image's path."""
        self._many("UPDATE images SET thumbnail = ? WHERE path = ?", numbers)

    def add_sheet(self, number: int, webp: bytes) -> None:
        """Keep a sheet of thumbnails."""
        self._many("INSERT INTO sheets VALUES (?, ?)", [(number, webp)])

    def sheets(self) -> Iterator[bytes]:
        """Yield the sheets in order."""
        for (webp,) in self._rows("SELECT webp FROM sheets ORDER BY number"):
            yield webp

    def _many(self, statement: str, rows: Iterable[Iterable[Any]]) -> None:
        with on_disk(_KEPT):
            self._db.executemany(statement, ([_storable(value) for value in row] for row in rows))

    def _rows(self, query: str, *values: object) -> Iterator[Any]:
        with on_disk(_KEPT):
            yield from self._db.execute(query, values)


def _storable(value: Any) -> Any:  # noqa: ANN401  whatever a column holds
    # What JSON allows and SQLite does not: a lone surrogate, and a number of more than 64 bits.
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return max(-_LARGEST, min(value, _LARGEST)) if isinstance(value, int) else value
