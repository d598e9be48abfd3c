"""An archive re-read and proved: every sidecar against its file, and the journals against both.

Nothing is written, and no network is used.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

from bulkfetch.archive import Identity, Tree, files, tree_at
from bulkfetch.archive.identity import archive_at
from bulkfetch.archive.tree import LocalTree
from bulkfetch.manifest import Manifest
from bulkfetch.models import ManifestRow
from bulkfetch.verification.findings import (
    ADVICE,
    Checked,
    Finding,
    Kind,
    Report,
    Sample,
    Spoken,
    Taken,
)
from bulkfetch.verification.journals import Journals, LastWord, reconcile
from bulkfetch.verification.source import ALGORITHMS, FoundError, Source, Take, state_of
from bulkfetch.verification.walk import check_disk

__all__ = [
    "ADVICE",
    "ALGORITHMS",
    "Finding",
    "FoundError",
    "Kind",
    "LastWord",
    "Report",
    "Source",
    "Take",
    "Taken",
    "is_at_work",
    "state_of",
    "verify",
]

# Each waits for one answer of an object store.
_THREADS = 32


def verify(
    out: str,
    *,
    percent: float = 100.0,
    seed: str | None = None,
    processes: int = 1,
    manifest: Manifest | None = None,
    heads: Collection[str] = (),
    found: Callable[[Finding], None] = lambda _: None,
    looked_at: Callable[[int], object] = lambda _: None,
    attested: Callable[[ManifestRow, LastWord], None] = lambda _row, _word: None,
    take: Take | None = None,
    taken: Callable[[Taken], None] = lambda _: None,
) -> Report:
    """Re-read an archive, and return what was found; `found` is told of each finding at once.

    Args:
        out: the archive's directory; it may be mounted read-only.
        percent: of the files, how many are hashed; of all of them, presence and size are checked.
        seed: which of them: the same seed and percentage are the same files; by default a new one.
        processes: how many read side by side; more than 1 only where no other thread runs.
        heads: digests that runs told as their `head`, kept elsewhere since: their lines are to be
            in the journals still.
        manifest: its rows are reconciled with the journals.
        looked_at: told how many files more were checked.
        attested: told of each row without an image, or but for some that a filter left out, and
            when the API last said so.
        take: handed each sidecar and file as it is read, in whichever process reads it.
        taken: told of each that was, in no order.

    Raises:
        ConfigurationError: there is no archive, or the manifest is a bad one.
        DestinationError: the archive cannot be read at all.
    """
    began = time.monotonic()
    with files.named(out):
        tree = tree_at(out)
        identity = archive_at(tree)
        if manifest:
            manifest.check()
        sample = None
        if percent < 100:
            sample = Sample(percent=percent, seed=seed or secrets.token_hex(4))
        sums = Checked()
        kinds: Counter[Kind] = Counter()
        spoken = Spoken()

        def told(checked: Checked) -> None:
            journals.note(checked.digests)
            for finding in checked.findings:
                kinds[finding.kind] += 1
                spoken.note(finding)
                found(finding)
            for image in checked.displaced:
                spoken.note_displaced(image)
            for file in checked.taken:
                taken(file)
            looked_at(checked.files)
            # What was told is not kept: it may be as much as the archive.
            checked.findings.clear()
            checked.displaced.clear()
            checked.taken.clear()
            checked.digests.clear()
            sums.add(checked)

        with Journals(tree, spoken, heads) as journals:
            _checked_images(tree, processes)(identity, sample, told=told, take=take)
            journals.check(told)
            reconciled = reconcile(manifest, journals, told, attested) if manifest else None
    return Report(
        archive=tree.name,
        seconds=round(time.monotonic() - began, 3),
        images=sums.images,
        unlisted=sums.unlisted,
        sidecars=sums.sidecars,
        files=sums.files,
        hashed=sums.hashed,
        bytes=sums.bytes,
        sample=sample,
        runs=journals.runs,
        runs_without_summary=journals.without_summary,
        manifest=reconciled,
        findings=dict(sorted(kinds.items())),
        ok=not kinds,
    )


def is_at_work(out: str) -> bool:
    """Tell whether a run holds the archive now.

    Raises:
        ConfigurationError: it is no URL of an archive.
        DestinationError: it cannot be told.
    """
    with files.named(out):
        return bool(tree_at(out).at_work())


class _CheckImages(Protocol):
    def __call__(
        self,
        identity: Identity,
        sample: Sample | None,
        *,
        told: Callable[[Checked], None],
        take: Take | None,
    ) -> None: ...


def _checked_images(tree: Tree, processes: int) -> _CheckImages:
    """Return what checks all but the journals, where the archive lies."""
    if isinstance(tree, LocalTree):
        return partial(check_disk, tree.root, processes)
    from bulkfetch.archive.store_tree import StoreTree  # noqa: PLC0415  an extra
    from bulkfetch.verification.bucket import check_bucket  # noqa: PLC0415

    if not isinstance(tree, StoreTree):
        raise TypeError("an archive lies on a disk or in an object store")
    return partial(check_bucket, tree.store, 1 if processes == 1 else _THREADS)
