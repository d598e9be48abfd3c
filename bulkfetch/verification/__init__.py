"""An archive re-read and proved: every sidecar against its file, and the journals against both.

Nothing is written, and no network is used.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from bulkfetch.archive import files, tree_at
from bulkfetch.archive.identity import archive_at
from bulkfetch.archive.lock import at_work
from bulkfetch.manifest import Manifest
from bulkfetch.models import ManifestRow
from bulkfetch.paths import PRIVATE
from bulkfetch.verification.beside import check_beside
from bulkfetch.verification.exposure import check_exposure
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
from bulkfetch.verification.source import ALGORITHMS, FoundError, Source, Take
from bulkfetch.verification.walk import check_images

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
    "verify",
]


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
    root = Path(out)
    began = time.monotonic()
    with files.named(out):
        identity = archive_at(tree_at(out))
        if manifest:
            manifest.check()
        root = root.resolve()
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

        with (
            files.descriptor(root) as directory,
            Journals(tree_at(out), spoken, heads) as journals,
        ):
            check_images(root, identity, sample, processes, told, take=take)
            told(check_beside(directory))
            told(check_exposure(directory))
            journals.check(told)
            reconciled = reconcile(manifest, journals, told, attested) if manifest else None
    return Report(
        archive=str(root),
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
    """Tell whether a run holds the archive now."""
    return bool(at_work(Path(out) / PRIVATE))
