"""What every kind of destination can do, and the order in which it does it.

An image is staged beside its final name, made durable, renamed; then its sidecar is. So a sidecar
that is there stands for a whole image, whenever the power fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from bulkfetch.archive.tree import Tree
from bulkfetch.models import Sidecar
from bulkfetch.paths import DEFAULT_TEMPLATE
from bulkfetch.plan import Held, Level, Place

LAYOUT = 1
T = TypeVar("T")
# A body up to this size waits in memory; the part of a longer one is kept for another try.
KEPT_OVER_BYTES = 2**20


class Identity(BaseModel):
    """Whose archive this is; another account's run is refused.

    `organization_id` is None until the first record named it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: int = LAYOUT
    api_host: str
    organization_id: str | None = None
    path_template: str = DEFAULT_TEMPLATE


class Mark(BaseModel):
    """Which stored object a part is of, as storage told it: `total` in bytes, digests in base64.

    At least one of `crc32c` and `md5` is given, since a part that lay through a power cut may hold
    anything; only a digest of the whole tells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    etag: str
    generation: str | None
    total: int
    crc32c: str | None
    md5: str | None


class Writer(NamedTuple):
    """Who writes: which shard's run (`2-of-4`, or "" for the whole), and which of its processes.

    `locks` are descriptors for another process to inherit, so that no other run begins before that
    has ended, too. `is_first` where no image was in the archive when the run began.
    """

    owner: str
    process: str
    locks: Sequence[int]
    is_first: bool = False


class Kept(BaseModel):
    """A part that is there already: of which object, and how many bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mark: Mark
    size: int


class Stage(Protocol):
    """Bytes on their way in.

    Leaving its context without `OpenArchive.publish` drops them; but a long body that was begun
    with a mark is kept where the connection, the run or the machine gave up, and not the body
    itself.

    Attributes:
        kept: what is there already from another try; None in most cases.
    """

    kept: Kept | None

    def begin(self, mark: Mark | None) -> None:
        """Start from nothing; without a mark no part of it will be kept."""

    def restore(self) -> AsyncIterator[bytes]:
        """Go on after the kept part, and yield what it holds."""

    def discard(self) -> None:
        """Remove the kept part: it cannot be continued."""

    async def write(self, data: bytes) -> None:
        """Add bytes at the end."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What is held of some places, None where there is no sidecar, and of other images beside them.

    Of the others only the latest version is told. `superseded` are those places of which nothing is
    held, and an earlier version is, in the same directory: told with the others.
    """

    held: Sequence[Held | None]
    others: Mapping[Place, Held] = field(default_factory=dict)
    superseded: Collection[Place] = ()


class Again(Protocol):
    """Awaits something again while it fails with what may pass; see `bulkfetch.retry.Retry`."""

    async def __call__(self, what: str, attempt: Callable[[], Coroutine[Any, Any, T]], /) -> T:
        """Return what the attempt returns in the end."""


class Growing(Protocol):
    """A file of a run that grows at its end; it is there once anything was appended."""

    @property
    def name(self) -> str:
        """What people call it."""

    def append(self, data: bytes, *, durable: bool) -> int:
        """Add bytes, and return how many of them were added; with `durable`, wait for the disk.

        Nothing to add, and `durable`, waits for what was added before.

        Raises:
            OSError: they cannot be written.
        """

    def close(self, *, durable: bool) -> None:
        """See that all is written, and that others can read it.

        Raises:
            OSError: it cannot be written.
        """


class OpenArchive(Protocol):
    """A destination, open for one run.

    Every method raises `DestinationError` where the destination fails.

    Attributes:
        tree: what is in it.
        writer: what another process needs to `join`; None where nothing may be written.
        is_recognised: whether anything was claimed: the account is the archive's own.
    """

    tree: Tree
    writer: Writer | None
    is_recognised: bool

    async def look(
        self,
        places: Sequence[Place],
        own: Sequence[Level] | None = None,
        elsewhere: Sequence[str] = (),
        *,
        rehash: bool,
    ) -> Holdings:
        """Return what is held of each place, and of other images in the same directories.

        The others are looked for only where it is told which directory is the row's `own`, which is
        looked at, too, as are those `elsewhere`. A file is checked by its size, and by its SHA-256
        too with `rehash`.
        """

    def stage(self, place: Place) -> AbstractAsyncContextManager[Stage]:
        """Make room for one image's bytes, beside their final name."""

    async def publish(self, stage: Stage, name: str, revision: int, sidecar: Sidecar) -> str:
        """Give a staged file its name, durably, and then its sidecar.

        Returns the sidecar's SHA-256, in hex, as `note` does.
        """

    async def note(self, place: Place, revision: int, sidecar: Sidecar) -> str:
        """Write a sidecar that has no new file."""

    async def check_room(self) -> None:
        """Raise `DestinationError` if hardly anything more can be written."""

    async def quarantine(self, place: Place) -> None:
        """Move whatever lies at a place out of the way, keeping it."""

    async def claim(self, organization_id: str) -> None:
        """Note whose archive this is.

        Raises:
            ArchiveMismatchError: it is another organization's.
        """

    def growing(self, name: str) -> Growing:
        """Return a file in this run's folder that is to grow."""

    def write(self, name: str, text: str, *, durable: bool = True) -> None:
        """Write a whole text file into this run's folder, or leave the one that is there.

        Without `durable`, a power cut may lose it, even where nothing else is lost.
        """

    def remove(self, name: str) -> None:
        """Remove a file from this run's folder, if that can be done."""

    def process_died(self) -> None:
        """Have the next run clear away what a process of this one left half-made."""
