"""How far the nightly manifests are: a small file that never runs ahead of the archive.

A build notes where it ended as `pending`. The next one takes that for `confirmed` only if a run in
the archive had that very manifest, by its SHA-256, and all of it: else it begins where the last
confirmed one ended, so that a night that failed is in the next night's manifest too.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from bulkfetch.archive import files
from bulkfetch.building.part import Seen
from bulkfetch.building.scan import BEGINNING
from bulkfetch.errors import ConfigurationError, DestinationError
from bulkfetch.logs import stamp
from bulkfetch.models import Summary, Timestamp, moment

# A record may show up some time after the time it bears, when a transaction took as long: so much
# is read again each night, and what is known of it dropped.
OVERLAP = timedelta(minutes=5)
# More than these are in the next manifest once more, which costs a query each.
SEEN_AT_MOST = 10_000
# A cursor this far ahead of this machine's clock is none that the API gave.
AHEAD_AT_MOST = timedelta(days=1)
# How far a clock may have been set back between a build and the run on its manifest.
_CLOCK = timedelta(days=2)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trail(_Frozen):
    """How far a scan has read, and what of the last minutes it has seen."""

    updated_at: Timestamp
    seen: list[Seen] = []

    @property
    def overlap_begins(self) -> datetime:
        """From when on it is read again."""
        return max(moment(self.updated_at) - OVERLAP, moment(BEGINNING))

    @property
    def since(self) -> str:
        """The same, as the API writes times."""
        return stamp(self.overlap_begins)


class Position(_Frozen):
    """How far both scans have read; None for one that was never made."""

    patients: Trail
    coverages: Trail | None = None


class Pending(_Frozen):
    """Where a build ended, and which manifest it made."""

    position: Position
    manifest_sha256: str
    rows: int
    built_at: datetime


class Cursor(_Frozen):
    """The file as a whole."""

    schema_version: Literal[1] = 1
    api_host: str
    organization_id: str | None = None
    confirmed: Position | None = None
    pending: Pending | None = None

    @classmethod
    def read(cls, path: Path, api_host: str) -> Self:
        """Return what the file says; a new one where there is none.

        Raises:
            ConfigurationError: it is torn, no cursor, another account's, or from the future.
            DestinationError: it cannot be read.
        """
        try:
            with files.named(str(path)):
                text = path.read_bytes()
        except DestinationError:
            if path.exists() or path.is_symlink():
                raise
            return cls(api_host=api_host)
        try:
            cursor = cls.model_validate_json(text)
        except ValidationError:
            raise ConfigurationError(
                f"{path} is torn, or no cursor of this version: restore it from a copy, or remove "
                "it, and the next build begins at --since, or at the beginning; nothing is lost"
            ) from None
        if cursor.api_host != api_host:
            raise ConfigurationError(
                f"{path} is the cursor of another account, at {cursor.api_host} and not at "
                f"{api_host}: correct --environment or --api-url, or name another --cursor"
            )
        positions = [cursor.confirmed, cursor.pending and cursor.pending.position]
        latest = max((moment(p.patients.updated_at) for p in positions if p), default=None)
        if latest and latest > datetime.now(UTC) + AHEAD_AT_MOST:
            raise ConfigurationError(
                f"{path} says that the API was read up to {latest:%Y-%m-%d}, which is to come: set "
                "this machine's clock, or restore the file from a copy, or remove it"
            )
        return cursor

    def settled(self, out: Path) -> Self:
        """Return the same with the last build confirmed, if the archive has all of its manifest.

        Raises:
            DestinationError: the archive cannot be read.
        """
        pending = self.pending
        if pending is None or not (pending.rows == 0 or _is_archived(out, pending)):
            return self
        return self.model_copy(update={"confirmed": pending.position, "pending": None})

    def write(self, path: Path) -> None:
        """Write the file, so that it is whole at any time.

        Raises:
            DestinationError: it cannot be written.
        """
        with files.named(str(path)), files.whole_file(path) as file:
            file.write(self.model_dump_json(indent=1).encode())


def _is_archived(out: Path, pending: Pending) -> bool:
    """Tell whether a run, or all shards of one, had this manifest and ended with status 0."""
    earliest = f"{pending.built_at - _CLOCK:%Y%m%dT%H%M%SZ}"
    done: set[str] = set()
    with files.named(str(out)):
        for path in out.glob(".bulkfetch/runs/*/summary.json"):
            if path.parent.name < earliest:
                continue
            with suppress(ValidationError):
                summary = Summary.model_validate_json(files.read(path))
                is_of_it = summary.manifest_sha256 == pending.manifest_sha256
                if is_of_it and summary.exit_code == 0:
                    done.add(summary.shard or "1/1")
    wholes = {int(share.partition("/")[2]) for share in done}
    return any(done >= {f"{i}/{n}" for i in range(1, n + 1)} for n in wholes)
