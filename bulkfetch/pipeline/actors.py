"""What runs on the nodes of a cluster: a process of a run, as an actor of Ray's.

Its two ends talk in calls of the actor, in pieces so small that none goes by way of Ray's object
store. Nothing leaves a method as an error, since Ray writes errors down.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from bulkfetch._version import __version__
from bulkfetch.bounds import Lease, LentRetries, Tenant, Wish
from bulkfetch.limits import fit_to_open_files
from bulkfetch.pipeline.crew import SILENT_AT_MOST_S
from bulkfetch.pipeline.patients import Patients
from bulkfetch.pipeline.wire import Message, Start, Unpacker, packed
from bulkfetch.pipeline.worker import Worker, work
from bulkfetch.settings import Settings
from bulkfetch.transport import Transport

# Ray sends arguments and results up to 100 kB along with the call.
PIECE_BYTES = 2**16
VERSIONS = f"bulkfetch {__version__}, Python {platform.python_version()}"
# The other end asks again at once.
_ANSWER_WITHIN_S = 0.5


class Actor:
    """A process of a run on some node; `bounds` is the actor that holds what bounds the run."""

    def __init__(self, number: int, bounds: Any) -> None:  # noqa: ANN401  Ray's handle of an actor
        self._number = number
        self._bounds = bounds
        self._channel = _Channel()
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> str:
        """Begin to see to what is told, and return which versions do so."""
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._watch())]
        return VERSIONS

    async def tell(self, data: bytes) -> None:
        """Take the next bytes of what the first process says."""
        self._channel.take(data)

    async def hear(self) -> bytes | None:
        """Return what is next to be said, nothing after a while without any, None at the end."""
        return await self._channel.give()

    async def _work(self) -> None:
        try:
            start = await self._channel.receive()
            if isinstance(start, Start):
                start = replace(start, settings=fit_to_open_files(start.settings))
                retries = LentRetries()

                @asynccontextmanager
                async def lease(transport: Transport, patients: Patients) -> AsyncIterator[None]:
                    tenant = self._tenant(start.settings, retries, transport, patients)
                    keeping = asyncio.create_task(_keep(tenant))
                    try:
                        yield
                    finally:
                        keeping.cancel()
                        last = (self._number, retries.taken, retries.successes)
                        await self._bounds.leave.remote(*last)

                await work(self._channel, start, Worker(self._channel, start, retries, lease))
        finally:
            self._channel.close()

    def _tenant(
        self, settings: Settings, retries: LentRetries, transport: Transport, patients: Patients
    ) -> Tenant:
        async def renew(wish: Wish) -> Lease:
            lease: Lease = await self._bounds.renew.remote(self._number, wish)
            return lease

        return Tenant(
            settings,
            renew,
            queries=transport.query_slots,
            pace=transport.pace,
            retries=retries,
            downloads=patients.download_slots,
        )

    async def _watch(self) -> None:
        """End when the first process has not asked for long, though it asks all the time."""
        while self._channel.silent_s < SILENT_AT_MOST_S:
            # Second by second, since while this process was stopped, nothing could be heard.
            await asyncio.sleep(1)
            self._channel.silent_s += 1
        os._exit(1)


class _Channel:
    """The actor's end of the channel to the first process."""

    def __init__(self) -> None:
        self.silent_s = 0
        self._heard: asyncio.Queue[Message] = asyncio.Queue()
        self._unpack = Unpacker()
        self._to_say = bytearray()
        self._is_closed = False
        self._changed = asyncio.Event()

    def send(self, message: Message) -> None:
        """See `Channel.send`."""
        self._to_say += packed(message)
        self._changed.set()

    async def receive(self) -> Message:
        """See `Channel.receive`."""
        return await self._heard.get()

    def close(self) -> None:
        """Say no more."""
        self._is_closed = True
        self._changed.set()

    def take(self, data: bytes) -> None:
        """See `Actor.tell`."""
        for message in self._unpack(data):
            self._heard.put_nowait(message)

    async def give(self) -> bytes | None:
        """See `Actor.hear`."""
        self.silent_s = 0
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _ANSWER_WITHIN_S)
        data = bytes(self._to_say[:PIECE_BYTES])
        del self._to_say[:PIECE_BYTES]
        if not self._to_say and not self._is_closed:
            self._changed.clear()
        return None if self._is_closed and not data else data


async def _keep(tenant: Tenant) -> None:
    try:
        await tenant.keep()
    except Exception:  # noqa: BLE001  whatever it is, the share is no longer this process's
        os._exit(1)
