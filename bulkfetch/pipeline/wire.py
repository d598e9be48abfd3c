"""What the processes of a run say to each other, over a socket that nobody else can reach.

A message is pickled, since both ends are the same program; its length goes before it.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Self, TypeAlias

from bulkfetch.api import Token
from bulkfetch.archive import Identity, Writer
from bulkfetch.errors import BulkfetchError
from bulkfetch.journal import Failure, Tally
from bulkfetch.models import ManifestRow
from bulkfetch.settings import Settings
from bulkfetch.snapshot import InFlight

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Start:
    """All that a helper needs to begin: first thing it is told.

    Attributes:
        settings: with this process's share of what is bounded, and without credentials.
        number: of this process, from 2, out of `processes`.
        head: the digest of the first line of the run's first journal, which this one's follows.
        budget: a descriptor, inherited; see `Budget`.
        log_level: as `logging` has it.
    """

    settings: Settings
    run_id: str
    identity: Identity
    writer: Writer
    number: int
    processes: int
    head: str | None
    budget: int
    log_level: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Patients to see to."""

    rows: Sequence[ManifestRow]


@dataclass(frozen=True, slots=True)
class Lent:
    """The answer to `Borrow`."""

    token: Token | BulkfetchError


class Order(Enum):
    """What else a helper is told: that there are no more rows, to stop in order, or at once."""

    finish = "finish"
    stop = "stop"
    cancel = "cancel"


@dataclass(frozen=True, slots=True)
class Report:
    """How far a helper is; the first one says that it is ready, the last one that it is done.

    Attributes:
        ended: since the last report, by the rows' lines.
        failures: the same, for those that failed.
        tally: since the helper began.
        in_flight: what is under way.
        query_limit: how many queries it has in flight at most, now.
        outage: what it waits for, in words.
    """

    ended: Sequence[int]
    failures: Sequence[tuple[int, Failure]]
    tally: Tally
    in_flight: InFlight
    query_limit: int
    outage: str | None
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Fatal:
    """What ends the run."""

    error: BulkfetchError


@dataclass(frozen=True, slots=True)
class Borrow:
    """A helper needs a token; the last one was `refused`, if any was, after it was `accepted`."""

    refused: str | None
    accepted: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a helper has to say to a person."""

    logger: str
    level: int
    text: str


Message: TypeAlias = Start | Rows | Lent | Order | Report | Fatal | Borrow | LogLine


class Channel:
    """One end of a connection between two processes of a run."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Return the channel over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Send a message, or do nothing where the other end is gone; never waits."""
        if not self._writer.is_closing():
            data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            self._writer.write(len(data).to_bytes(_LENGTH_BYTES, "big"))
            self._writer.write(data)

    async def receive(self) -> Message | None:
        """Return the next message, None where the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            data = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        message: Message = pickle.loads(data)  # noqa: S301  from this program alone
        return message

    async def close(self) -> None:
        """Let go of it, once what was sent is on its way."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
