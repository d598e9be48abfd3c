"""What may be wrong with an archive, and what to do about each."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from bulkfetch.models import ManifestRow


class Kind(StrEnum):
    """A kind of finding, by a stable word."""

    missing = "missing"
    changed = "changed"
    torn = "torn"
    schema = "schema"
    inconsistent = "inconsistent"
    misplaced = "misplaced"
    foreign = "foreign"
    stray = "stray"
    part = "part"
    link = "link"
    unreadable = "unreadable"
    exposed = "exposed"
    lost = "lost"
    rewritten = "rewritten"
    chain = "chain"
    journal = "journal"
    unarchived = "unarchived"


_AGAIN = "run download again: it moves what is left to quarantine and fetches the image anew"
ADVICE = {
    Kind.missing: _AGAIN,
    Kind.changed: "run download again, with --force where the size is the same: it moves file and "
    "sidecar to quarantine and fetches the image anew",
    Kind.torn: _AGAIN,
    Kind.schema: "verify with the version of bulkfetch that wrote it",
    Kind.inconsistent: "see who changed it; restore it from a copy of the archive",
    Kind.misplaced: "move it back to where it was, or restore it from a copy",
    Kind.foreign: "move it to the archive of its own account, and the runs that brought it "
    "(.bulkfetch/runs/<run_id>), before another run here names them",
    Kind.stray: "run download if it is an image without a sidecar; move anything else away",
    Kind.part: "nothing is lost: the next download continues or removes it",
    Kind.link: "move it away: a link is never followed, and is no image",
    Kind.unreadable: "get access to it, or see to the disk",
    Kind.exposed: "close it: chmod -R o= DEST; mount a disk that knows no rights with umask=007",
    Kind.lost: "restore it from a copy, or run download again, and find out who removed it",
    Kind.rewritten: "find out who changed it; restore it from a copy of the archive",
    Kind.chain: "find out who changed the journals; restore them from a copy kept elsewhere",
    Kind.journal: "restore it from a copy; the images are judged by their sidecars",
    Kind.unarchived: "run download with the same manifest again",
}

# What speaks against an image that was archived.
_AGAINST_AN_IMAGE = frozenset(Kind) - {
    Kind.stray,
    Kind.part,
    Kind.exposed,
    Kind.chain,
    Kind.journal,
    Kind.unarchived,
}
# What lies where something else should, or bars the way to it.
_IN_THE_WAY = {Kind.stray, Kind.link, Kind.unreadable}
# What is the same in the names of an image's files.
_IMAGE = re.compile(r".*\.v[0-9]+(?=\.)", re.DOTALL)


class Finding(NamedTuple):
    """One thing that is wrong; `path` is below the archive.

    Where it is a manifest's row, `path` is None, and the row's IDs are told instead.
    """

    kind: Kind
    path: str | None
    detail: str
    patient_id: str | None = None
    coverage_id: str | None = None


class Taken(NamedTuple):
    """A file that was read and handed on, by its path; `patient_id` is what a sidecar says."""

    path: str
    size_bytes: int
    digests: tuple[bytes, ...]
    patient_id: str | None = None


class Spoken:
    """What findings speak of so far, so that the journals tell no more of the same.

    Attributes:
        damaged: images, by their paths without endings.
    """

    def __init__(self) -> None:
        self.damaged: set[str] = set()
        self._explained: set[str] = set()

    def note(self, finding: Finding) -> None:
        """Note what a finding speaks of."""
        path = finding.path or ""
        image = _IMAGE.match(path)
        if image and finding.kind in _AGAINST_AN_IMAGE:
            self.damaged.add(image[0])
        if finding.kind in _IN_THE_WAY:
            self._explained.add(image[0] if image else path)

    def note_displaced(self, image: str) -> None:
        """Note where an image belongs that was found elsewhere."""
        self._explained.add(image)

    def explains(self, image: str) -> bool:
        """Tell whether it was said why an image is not to be found."""
        parts = image.split("/")
        above = ("/".join(parts[:number]) for number in range(1, len(parts) + 1))
        return image in self.damaged or not self._explained.isdisjoint(above)


Digests = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Checked:
    """What was looked at, and what is wrong; sums can be added.

    `images` have a sidecar, each version for itself; `unlisted` are those of them that the API does
    not list any more. `displaced` are the paths, without endings, where images belong that are
    elsewhere. `digests` are the SHA-256 of sidecars, by `key_of` their paths.
    """

    images: int = 0
    unlisted: int = 0
    sidecars: int = 0
    files: int = 0
    hashed: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    displaced: list[str] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    digests: Digests = field(default_factory=list)

    def add(self, other: Checked) -> None:
        """Add what else was looked at."""
        self.images += other.images
        self.unlisted += other.unlisted
        self.sidecars += other.sidecars
        self.files += other.files
        self.hashed += other.hashed
        self.bytes += other.bytes
        self.findings += other.findings
        self.displaced += other.displaced
        self.taken += other.taken
        self.digests += other.digests

    def find(self, kind: Kind, path: str, detail: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(kind, path, detail))

    def find_row(self, kind: Kind, row: ManifestRow, detail: str) -> None:
        """Note a finding about a manifest's row."""
        self.findings.append(Finding(kind, None, detail, *row.key))


def key_of(path: str) -> bytes:
    """Return what stands for a path where millions are kept."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:16]


class Sample(BaseModel):
    """Which files are hashed: those whose name and `seed` make a number below `percent`."""

    model_config = ConfigDict(frozen=True)

    percent: float
    seed: str


class Reconciled(BaseModel):
    """A manifest's rows by what the journals last said of each; `total` is the sum of the rest.

    `filtered` are those that are complete but for images that a filter left out, and that are not
    in the archive; `damaged` those that were complete, and of whose images a finding speaks now;
    `never_asked` those that no run came to.
    """

    total: int = 0
    complete: int = 0
    filtered: int = 0
    damaged: int = 0
    empty: int = 0
    failed: int = 0
    not_reached: int = 0
    never_asked: int = 0


class Report(BaseModel):
    """What a verification found; `images`, `unlisted` and the sums below are as in `Checked`.

    `sample` is None where every file was hashed, `manifest` where none was reconciled.
    """

    archive: str
    seconds: float
    images: int
    unlisted: int
    sidecars: int
    files: int
    hashed: int
    bytes: int
    sample: Sample | None
    runs: int
    runs_without_summary: int
    manifest: Reconciled | None
    findings: dict[Kind, int]
    ok: bool
