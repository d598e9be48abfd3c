"""What waits in memory for an object store is bounded, however large the bodies are."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

from bulkfetch.archive.base import Mark
from bulkfetch.archive.store_stage import PART_BYTES, WHOLE_BYTES, Memory, StoreStage
from bulkfetch.plan import Place
from bulkfetch.stores.store import Upload

T = TypeVar("T")

ROOM_BYTES = 2**27
PIECE = bytes(2**18)


class Slow:
    """An uploader that takes its time, so that bodies come faster than they go."""

    def __init__(self) -> None:
        self.memory = Memory(ROOM_BYTES)
        self.sizes: list[int] = []

    async def run(self, work: Callable[[], T]) -> T:
        await asyncio.sleep(0.001)
        return work()

    async def put_image(self, data: bytearray) -> None:
        await asyncio.sleep(0.001)
        self.sizes.append(len(data))

    def begun(self, path: str) -> Upload:
        return Parts(path, self.sizes)

    def finish(self, upload: Upload, sha256: str) -> None:
        upload.finish()


class Parts(Upload):
    """An upload that only counts."""

    def __init__(self, path: str, sizes: list[int]) -> None:
        self.path = path
        self._size = 0
        self._sizes = sizes
        self.largest = 0

    def write(self, data: bytes | bytearray) -> None:
        self._size += len(data)
        assert len(data) <= PART_BYTES + len(PIECE)

    def finish(self) -> None:
        self._sizes.append(self._size)


async def put(uploader: Slow, number: int, size_bytes: int, *, is_told: bool = True) -> None:
    place = Place("p", f"image-{number}.v1")
    async with StoreStage(uploader, place) as stage:
        mark = Mark(etag='"1"', generation=None, total=size_bytes, crc32c="AAAAAA==", md5=None)
        stage.begin(mark if is_told else None)
        for _ in range(size_bytes // len(PIECE)):
            await stage.write(PIECE)
            await asyncio.sleep(0)
        if await stage.finished("0" * 64) is None:
            await uploader.put_image(stage.whole)


async def test_bodies_of_every_size_come_to_their_end_in_the_same_memory() -> None:
    sizes = [2**20, 5 * 2**20, 30 * 2**20, WHOLE_BYTES, WHOLE_BYTES + 2**20]
    uploader = Slow()
    tracemalloc.start()
    try:
        await asyncio.gather(*(put(uploader, n, sizes[n % len(sizes)]) for n in range(40)))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sorted(uploader.sizes) == sorted(sizes * 8)
    assert peak_bytes < ROOM_BYTES + 40 * 2 * 2**20


async def test_bodies_that_do_not_tell_their_length_wait_for_one_another_but_not_for_ever() -> None:
    uploader = Slow()
    await asyncio.gather(*(put(uploader, n, 3 * 2**20, is_told=False) for n in range(8)))
    assert uploader.sizes == [3 * 2**20] * 8


async def test_a_body_that_gives_up_waiting_does_not_keep_the_next_one_from_its_turn() -> None:
    memory = Memory(10)
    await memory.take(8)
    large = asyncio.create_task(memory.take(9))
    small = asyncio.create_task(memory.take(2))
    await asyncio.sleep(0)
    assert not small.done(), "the small one passed by the large one"
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    await asyncio.wait_for(small, 10)
    memory.give_back(10)
    await asyncio.wait_for(memory.take(10), 10)
