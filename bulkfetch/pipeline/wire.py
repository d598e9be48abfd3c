"""What the processes of a run say to each other.

A message is pickled, since both ends are the same program; in a socket its length goes before it.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self, TypeAlias

from pydantic import SecretStr

from bulkfetch.archive import Identity, Writer
from bulkfetch.errors import BulkfetchError
from bulkfetch.journal import Failure
from bulkfetch.logs import Event, Field, about
from bulkfetch.measures import InFlight
from bulkfetch.models import ManifestRow
from bulkfetch.outcomes import Outcome
from bulkfetch.settings import Settings
from bulkfetch.tally import Tally

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Start:
    """All that a helper needs to begin: first thing it is told.

    Attributes:
        settings: with this process's share of what is bounded, and without credentials.
        number: of this process, from 2.
        head: the digest of the first line of the run's first journal, which this one's follows.
        log_level: as `logging` has it.
        tells_outcomes: whether reports are to have them.
    """

    settings: Settings
    run_id: str
    identity: Identity
    writer: Writer
    number: int
    head: str | None
    log_level: int
    grace_s: float
    tells_outcomes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperStart(Start):
    """The same for one of several processes of a machine.

    Attributes:
        processes: how many there are.
        budget: a descriptor, inherited; see `Budget`.
    """

    processes: int
    budget: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Patients to see to."""

    rows: Sequence[ManifestRow]


@dataclass(frozen=True, slots=True)
class Lent:
    """The answer to `Borrow`: a token and for how many seconds it is good, or why there is none."""

    token: SecretStr | BulkfetchError
    good_for_s: float = 0.0


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
        kept_back: how many queries fewer it has in flight, since the API says that it is too much.
        outage: what it waits for, in words.
        outcomes: since the last report, if they are wanted.
    """

    ended: Sequence[int]
    failures: Sequence[tuple[int, Failure]]
    tally: Tally
    in_flight: InFlight
    kept_back: int
    outage: str | None
    outcomes: Sequence[Outcome]
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
    """What a helper has to say to a person, and what it is about: see `logs.about`."""

    logger: str
    level: int
    text: str
    event: Event | None
    fields: Mapping[str, Field]

    def repeat(self) -> None:
        """Say it here."""
        extra = about(self.event, **self.fields) if self.event else None
        logging.getLogger(self.logger).log(self.level, "%s", self.text, extra=extra)


Message: TypeAlias = Start | Rows | Lent | Order | Report | Fatal | Borrow | LogLine


class Channel(Protocol):
    """One end of a connection between two processes of a run."""

    def send(self, message: Message) -> None:
        """Send a message, or do nothing where the other end is gone; never waits."""

    async def receive(self) -> Message | None:
        """Return the next message, None where the other end is gone."""


def packed(message: Message) -> bytes:
    """Return a message as it is sent, its length before it."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


class Unpacker:
    """Makes messages of the bytes that come, in whatever pieces."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __call__(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that are whole by now."""
        self._data += data
        while len(self._data) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._data[:_LENGTH_BYTES], "big")
            if len(self._data) < end:
                return
            message: Message = pickle.loads(self._data[_LENGTH_BYTES:end])  # noqa: S301  from this program alone
            del self._data[:end]
            yield message


class SocketChannel:
    """A channel over a socket that nobody else can reach."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Return the channel over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """See `Channel.send`."""
        if not self._writer.is_closing():
            self._writer.write(packed(message))

    async def receive(self) -> Message | None:
        """See `Channel.receive`."""
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
