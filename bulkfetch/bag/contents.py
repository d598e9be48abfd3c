"""Which files a bag has, and their digests: kept on disk, since they grow with the images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Self

from bulkfetch.errors import DestinationError
from bulkfetch.manifest.index import on_disk, private_database
from bulkfetch.verification import ALGORITHMS, Taken

_KEPT = "what the bag contains"


class Sums(NamedTuple):
    """How many files, and their bytes together."""

    files: int
    bytes: int


class Contents:
    """The files of a bag, as they are added."""

    def __init__(self) -> None:
        digests = "".join(f", {algorithm} BLOB" for algorithm in ALGORITHMS)
        with on_disk(_KEPT):
            self._db = private_database()
            self._db.execute(
                "CREATE TABLE files "
                f"(is_payload INTEGER, path TEXT, size INTEGER, patient_id TEXT{digests})"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add_payload(self, file: Taken) -> None:
        """Add a file by its path below the payload directory."""
        self._add(file._replace(path=f"data/{file.path}"), is_payload=True)

    def add_tag(self, file: Taken) -> None:
        """Add a tag file by its path in the bag."""
        self._add(file, is_payload=False)

    def sums(self, *, is_payload: bool) -> Sums:
        """Return how much there is of the payload, or of the tag files."""
        with on_disk(_KEPT):
            found = self._db.execute(
                "SELECT count(*), total(size) FROM files WHERE is_payload = ?", (is_payload,)
            ).fetchone()
        return Sums(found[0], int(found[1]))

    def patients(self) -> int:
        """Return of how many patients there are sidecars."""
        with on_disk(_KEPT):
            found = self._db.execute("SELECT count(DISTINCT patient_id) FROM files").fetchone()
        return int(found[0])

    def manifest(self, algorithm: str, *, is_payload: bool) -> Iterator[str]:
        """Yield the lines of a manifest, in the paths' order (RFC 8493, section 2.1.3)."""
        with on_disk(_KEPT):
            found = self._db.execute(
                f"SELECT hex({algorithm}), path FROM files WHERE is_payload = ? ORDER BY path",  # noqa: S608  a name of ours
                (is_payload,),
            )
            for digest, path in found:
                yield f"{digest.lower()}  {path}"

    def _add(self, file: Taken, *, is_payload: bool) -> None:
        row = (is_payload, encoded(file.path), file.size_bytes, _text(file.patient_id))
        marks = ", ".join("?" for _ in (*row, *file.digests))
        with on_disk(_KEPT):
            self._db.execute(f"INSERT INTO files VALUES ({marks})", (*row, *file.digests))  # noqa: S608  marks


def encoded(path: str) -> str:
    """Return a path as a manifest has it: what would end its line, and `%`, in hex.

    Raises:
        DestinationError: it is no UTF-8, which a bag's manifests are.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DestinationError(
            f"{ascii(path)[1:-1]} has no name in UTF-8, which a bag cannot tell: rename it"
        ) from None
    return re.sub(r"[%\r\n]", lambda found: f"%{ord(found[0]):02X}", path)


def _text(identity: str | None) -> str | None:
    # An ID with a lone surrogate is one that JSON allows and SQLite does not.
    return None if identity is None else identity.encode("utf-8", "backslashreplace").decode()
