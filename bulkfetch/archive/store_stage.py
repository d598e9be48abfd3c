"""One image's bytes on their way into an object store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self, TypeVar

from bulkfetch.archive import files
from bulkfetch.archive.base import KEPT_OVER_BYTES, Kept, Mark
from bulkfetch.media import EXTENSIONS, HEAD_BYTES, media_type_of
from bulkfetch.plan import Place
from bulkfetch.stores.store import Upload

# A body up to this size is one object, put only where there is none.
WHOLE_BYTES = 2**26
# A longer one goes by parts of this size. S3 allows 10,000, which makes 80 GB.
PART_BYTES = 2**23
# Of parts, one is being filled, one sent, and two are pieces on the way from one to the other.
_PARTS_AT_ONCE = 4

T = TypeVar("T")


class Memory:
    """What the long bodies may keep in memory; one that finds too little waits for its turn.

    It waits with its body unread, and so its sender waits. None waits that has taken some already,
    so those that have some come to their end.
    """

    def __init__(self, size_bytes: int) -> None:
        self._free = size_bytes
        # In the order of their coming, or a large body would wait for as long as small ones come.
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    async def take(self, size_bytes: int) -> None:
        """Take some, once there is enough."""
        async with self._turn:
            while size_bytes > self._free:
                self._given_back.clear()
                await self._given_back.wait()
            self._free -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Let others have it."""
        self._free += size_bytes
        self._given_back.set()


class Uploader(Protocol):
    """The archive, as a stage needs it."""

    memory: Memory

    async def run(self, work: Callable[[], T]) -> T:
        """Do work in a thread, once.

        Raises:
            StoreTroubleError: it failed, in a way that may pass.
            DestinationError: it failed.
        """

    def begun(self, path: str) -> Upload:
        """Begin to put an image by parts, at a path that is like this one, and free."""

    def finish(self, upload: Upload, sha256: str) -> None:
        """Make the image of its parts, and see that it has this digest."""


class StoreStage:
    """Bytes in memory while they are few, then parts of an upload; see `Stage`."""

    kept: Kept | None = None

    def __init__(self, uploader: Uploader, place: Place) -> None:
        self.place = place
        self._uploader = uploader
        # Grown in place: pieces to be joined would take twice the room, and leave holes behind.
        self._pending = bytearray()
        self._expected_bytes = WHOLE_BYTES
        self._taken_bytes = 0
        self._upload: Upload | None = None
        self._is_published = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._undo()
        finally:
            self._uploader.memory.give_back(self._taken_bytes)

    async def _undo(self) -> None:
        if self._upload is not None and not self._is_published:
            undoing = asyncio.get_running_loop().run_in_executor(None, self._upload.undo)
            with suppress(OSError):
                await files.to_its_end(undoing)

    def begin(self, mark: Mark | None) -> None:
        """See `Stage.begin`: no part of it is kept for another try."""
        if mark is not None:
            self._expected_bytes = mark.total

    async def restore(self) -> AsyncIterator[bytes]:
        """See `Stage.restore`: there is never anything."""
        for nothing in tuple[bytes]():
            yield nothing

    def discard(self) -> None:
        """See `Stage.discard`."""

    async def write(self, data: bytes) -> None:
        """See `Stage.write`."""
        self._pending += data
        is_long = self._expected_bytes > WHOLE_BYTES
        if not self._taken_bytes and len(self._pending) > KEPT_OVER_BYTES:
            wanted = _PARTS_AT_ONCE * PART_BYTES if is_long else self._expected_bytes
            await self._uploader.memory.take(wanted)
            self._taken_bytes = wanted
        if len(self._pending) <= (PART_BYTES if is_long else WHOLE_BYTES):
            return
        if self._upload is None:
            path = f"{self.place.directory}/{self.place.file(_ending(self._pending))}"
            self._upload = await self._uploader.run(lambda: self._uploader.begun(path))
        await self._spill(self._upload)

    @property
    def whole(self) -> bytearray:
        """All that was written, where it did not go by parts."""
        return self._pending

    async def finished(self, sha256: str) -> str | None:
        """Put what was written by parts, and return its path; None where it did not go by parts.

        Raises:
            StoreTroubleError, DestinationError: it could not be put.
        """
        if (upload := self._upload) is None:
            return None
        await self._spill(upload)
        await self._uploader.run(lambda: self._uploader.finish(upload, sha256))
        # A sidecar may name it from now on.
        self._is_published = True
        return upload.path

    async def _spill(self, upload: Upload) -> None:
        data, self._pending = self._pending, bytearray()
        await self._uploader.run(lambda: upload.write(data))


def _ending(head: bytearray) -> str:
    # What it was declared as is not known here; a page is refused later.
    return EXTENSIONS.get(media_type_of(bytes(head[:HEAD_BYTES]), "html, xml"), "bin")
