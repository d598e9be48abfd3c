"""What a run leaves about itself in its archive: journal, failures, how far it is, and its sums."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from datetime import datetime

from bulkfetch import chain
from bulkfetch._version import __version__
from bulkfetch.archive import OpenArchive, files
from bulkfetch.errors import BulkfetchError
from bulkfetch.journal import Failure, FailuresFile, Journal
from bulkfetch.manifest import ManifestFacts
from bulkfetch.models import ManifestRow, Summary
from bulkfetch.settings import Settings
from bulkfetch.snapshot import SnapshotFile
from bulkfetch.tally import Tally


class Record:
    """The files of a run's folder, from the first line of its journal to its summary.

    Attributes:
        journal: that of the run's first process.
    """

    def __init__(
        self,
        archive: OpenArchive,
        settings: Settings,
        facts: ManifestFacts,
        *,
        run_id: str,
        processes: int,
        started_at: datetime,
    ) -> None:
        self._archive = archive
        self._run_id = run_id
        self._is_durable = not settings.no_fsync
        shard = str(settings.shard) if settings.shard else None
        self.journal = Journal(archive.growing(chain.FIRST))
        with files.named(archive.tree.name):
            heads = chain.heads_of_runs(archive.tree, durable=self._is_durable)
        self.journal.event(
            "run_started",
            run_id=run_id,
            bulkfetch_version=__version__,
            operator=settings.operator,
            purpose=settings.purpose,
            shard=shard,
            filters=settings.filters or None,
            heads=heads,
        )
        self._failures = FailuresFile(archive.growing("failures.csv"), facts.columns)
        self._snapshots = SnapshotFile(
            archive,
            run_id,
            shard=shard,
            filters=settings.filters,
            processes=processes,
            started_at=started_at,
        )

    @property
    def failures(self) -> str | None:
        """Where failures are named; None where nothing failed."""
        return self._failures.path

    async def begin(self) -> None:
        """Bring the journal's first line to the disk, before any other journal follows from it.

        Raises:
            DestinationError: it cannot be written.
        """
        await self.journal.flush(durable=self._is_durable)

    def failed(self, row: ManifestRow, failure: Failure) -> None:
        """Note a manifest row that failed."""
        self._failures.note(row, failure)

    async def drain(self) -> None:
        """Wait until few failures are pending.

        Raises:
            DestinationError: they cannot be written.
        """
        await self._failures.drain()

    async def let_others_see(self, tally: Tally, retries: int) -> None:
        """Write how far the run is, and what has failed so far.

        Raises:
            DestinationError: the failures cannot be written.
        """
        await self._snapshots.write(tally, retries)
        await self._failures.flush()

    def close(self, summary: Summary, *, as_far_as_can_be: bool) -> Summary:
        """Finish the record with the run's sums, and return those with the journal's head.

        Raises:
            DestinationError: it cannot be written; never with `as_far_as_can_be`.
        """
        with suppress(BulkfetchError) if as_far_as_can_be else nullcontext():
            with files.named(self._archive.tree.name):
                heads = chain.heads_of_helpers(self._archive.tree, self._run_id)
            self.journal.event(
                "run_finished",
                exit_code=summary.exit_code,
                patients=summary.patients,
                images=summary.images,
                bytes=summary.bytes,
                heads=heads,
            )
            self.journal.close(durable=self._is_durable)
            summary = summary.model_copy(update={"head": self.journal.head})
            self._failures.close(durable=self._is_durable)
            self._archive.write("summary.json", summary.model_dump_json(indent=2))
            self._snapshots.remove()
        return summary
