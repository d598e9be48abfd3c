"""One image's bytes on their way into a directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from io import FileIO
from types import TracebackType
from typing import Self, TypeVar

from aiofiles.threadpool import wrap
from aiofiles.threadpool.binary import AsyncFileIO

from bulkfetch.archive import files
from bulkfetch.archive.base import KEPT_OVER_BYTES, Kept, Mark
from bulkfetch.archive.commit import NewFile
from bulkfetch.archive.parts import Parts
from bulkfetch.errors import (
    ConnectionFailedError,
    SignedURLError,
    StatusError,
    TimedOutError,
)
from bulkfetch.plan import Place

# What says nothing against the bytes that have come so far.
_PART_IS_GOOD = (
    ConnectionFailedError,
    SignedURLError,
    StatusError,
    TimedOutError,
    asyncio.CancelledError,
)

T = TypeVar("T")


class LocalStage:
    """Bytes in memory while they are few, then in a file beside the final name; see `Stage`."""

    def __init__(
        self,
        place: Place,
        open_directory: Callable[[], int],
        take_room: Callable[[int], None],
        parts: Parts,
    ) -> None:
        self.place = place
        self.part = parts.name(place.stem)
        self.file: AsyncFileIO | None = None
        self.kept = parts.find(place)
        self._parts = parts
        self._open_directory = open_directory
        self._take_room = take_room
        self._directory: int | None = None
        self._raw: FileIO | None = None
        self._mark: Mark | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Nothing is awaited: nothing may come between a cancellation and the clearing away.
        self._end(error)

    def begin(self, mark: Mark | None) -> None:
        """See `Stage.begin`."""
        self.kept = None
        self._mark = mark

    async def restore(self) -> AsyncIterator[bytes]:
        """See `Stage.restore`."""
        kept, self.kept = self.kept, None
        if kept is None:
            return
        self._mark = kept.mark
        await in_thread(lambda: self._open(kept))
        left = kept.size
        while left:
            data = await in_thread(self._read)
            left -= len(data)
            yield data

    def discard(self) -> None:
        """See `Stage.discard`."""
        self.begin(None)

    async def write(self, data: bytes) -> None:
        """See `Stage.write`."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= KEPT_OVER_BYTES:
            await self.spill()

    async def spill(self) -> None:
        """Write what is in memory to the staged file."""
        with files.named():
            self._take_room(self._pending_bytes)
        if self.file is None:
            await in_thread(lambda: self._open(None))
        view = memoryview(self.take())
        with files.named():
            while view and self.file is not None:
                # To its end, so that no thread writes to a descriptor that `_end` has closed.
                written = await files.to_its_end(asyncio.ensure_future(self.file.write(view)))
                view = view[written:]

    def take(self) -> bytes:
        """Return what is in memory, and forget it."""
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        return data

    def on_disk(self, name: str) -> NewFile:
        """What is to be the image: bytes in memory, or the staged file."""
        if self._raw is None:
            return NewFile(self.part, name, self.take())
        return NewFile(self.part, name, None, self._raw.fileno())

    def _end(self, error: BaseException | None) -> None:
        """Close, and leave of it what another try can use."""
        is_good = self._mark is not None and isinstance(error, _PART_IS_GOOD)
        if self._raw is not None:
            self._raw.close()
        if self._directory is not None:
            if not is_good:
                with suppress(OSError):
                    os.unlink(self.part, dir_fd=self._directory)
            os.close(self._directory)
        if self.kept is None and not (is_good and self._raw is not None):
            self._parts.remove(self.place)

    def _open(self, kept: Kept | None) -> None:
        self._directory = self._open_directory()
        if kept is None and self._mark is not None:
            self._parts.remember(self.place, self._mark)
        descriptor = files.create(self.part, self._directory, keep=kept is not None)
        self._raw = FileIO(descriptor, "r+b")
        self.file = wrap(self._raw)

    def _read(self) -> bytes:
        if self._raw is None or not (data := self._raw.read(KEPT_OVER_BYTES)):
            raise OSError("the kept part grew shorter")
        return data


async def in_thread(work: Callable[[], T]) -> T:
    """Do work in a thread; it is waited for even when cancelled, since it cannot be called off."""
    with files.named():
        return await files.to_its_end(asyncio.get_running_loop().run_in_executor(None, work))
