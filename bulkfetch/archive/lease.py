"""One run at a time on an archive in an object store, or the shards of one run side by side.

A store has no locks that die with their holder. So a run puts an object, only where there is none,
and writes it anew every `BEAT_S`; one that nobody wrote for `LEASE_S` is a dead run's, and may be
taken over. That is told by watching it, so that no two clocks need to agree.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bulkfetch.archive.files import named
from bulkfetch.archive.lock import is_gone, owner_of
from bulkfetch.errors import DestinationError
from bulkfetch.models import Shard
from bulkfetch.paths import PRIVATE
from bulkfetch.stores.store import Store, Version

BEAT_S = 5.0
LEASE_S = 60.0
# A run that could not renew its lease for so long writes nothing more.
_GIVE_UP_S = 40.0
_LOOK_S = 1.0
_PREFIX = "lease"


class Lease(BaseModel):
    """Who holds an archive, or a shard's share of it; `beat` counts how often it was renewed.

    `among` tells among which processes `pid` is one: containers may share the name of their host.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    pid: int = Field(gt=0, lt=2**31)
    host: str
    among: str = ""
    shard: str | None
    beat: int = 0
    modified_at: datetime = Field(default=datetime.min.replace(tzinfo=UTC), exclude=True)

    @property
    def is_fresh(self) -> bool:
        """Whether it was renewed of late, as far as this machine's clock and the store's agree."""
        return (datetime.now(UTC) - self.modified_at).total_seconds() < LEASE_S

    def has_died(self) -> bool:
        """Tell whether the run is known to be gone."""
        if (self.host, self.among) != (socket.gethostname(), _among()):
            return False
        return is_gone(self.pid)


def leases(store: Store) -> Iterator[Lease]:
    """Yield the leases on an archive, as far as they can be read.

    Raises:
        OSError: the store cannot be read.
    """
    for path in _paths(store):
        with suppress(FileNotFoundError, ValidationError):
            found = store.head(path)
            lease = Lease.model_validate_json(store.get(path)[0])
            yield lease.model_copy(update={"modified_at": found.modified_at})


class Watch(ABC):
    """A lease that a run holds, as one of its processes knows of it by a thread of its own."""

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path
        self._renewed_at = time.monotonic()
        self._is_lost = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_watch, name="lease", daemon=True)

    def check(self) -> None:
        """See that it is still this run's.

        Raises:
            DestinationError: another run has taken it, or may have.
        """
        if not self._is_ours:
            raise DestinationError(
                f"{self._store.url} is held by this run no longer: its lease could not be renewed "
                f"for {_GIVE_UP_S:.0f} s, or another run took it; run the same command again"
            )

    def start(self) -> None:
        """Begin to see to it."""
        self._thread.start()

    def end(self) -> None:
        """See to it no longer."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(_GIVE_UP_S)

    @property
    def _is_ours(self) -> bool:
        return not self._is_lost and time.monotonic() - self._renewed_at <= _GIVE_UP_S

    def _keep_watch(self) -> None:
        while not self._is_over.wait(BEAT_S):
            began = time.monotonic()
            if self._is_renewed():
                self._renewed_at = began

    @abstractmethod
    def _is_renewed(self) -> bool:
        """Tell whether it was renewed since this was asked last."""


class Hold(Watch):
    """A lease that this process renews until it is given back."""

    def __init__(self, store: Store, path: str, lease: Lease, version: Version) -> None:
        super().__init__(store, path)
        self._lease = lease
        self._version = version

    def give_back(self) -> None:
        """Let go of it, if it is still this run's."""
        self.end()
        with suppress(OSError):
            if self._is_ours and self._store.get(self._path)[1].etag == self._version.etag:
                self._store.delete(self._path)

    def _is_renewed(self) -> bool:
        self._lease = self._lease.model_copy(update={"beat": self._lease.beat + 1})
        try:
            self._version = self._store.put(self._path, _written(self._lease), self._version)
        except OSError as error:
            # The store may have it, although its answer was lost.
            if not self._is_written():
                self._is_lost = self._is_lost or error.errno == errno.EBUSY
                return False
        return True

    def _is_written(self) -> bool:
        with suppress(OSError, ValidationError):
            data, version = self._store.get(self._path)
            if Lease.model_validate_json(data) == self._lease:
                self._version = version
                return True
        return False


class _Follower(Watch):
    """A lease that the run's first process renews, and another of its processes looks at."""

    def __init__(self, store: Store, path: str, run_id: str) -> None:
        super().__init__(store, path)
        self._run_id = run_id
        self._beat = -1

    def _is_renewed(self) -> bool:
        with suppress(OSError):
            lease = _read(self._store.get(self._path)[0])
            self._is_lost = self._is_lost or lease is None or lease.run_id != self._run_id
            if lease and lease.beat != self._beat:
                self._beat = lease.beat
                return True
        return False


@contextmanager
def follow(store: Store, run_id: str, owner: str) -> Iterator[Watch]:
    """Follow the lease that a run's first process holds, until the context ends."""
    following = _Follower(store, _path(owner), run_id)
    following.start()
    try:
        yield following
    finally:
        following.end()


@contextmanager
def hold(
    store: Store,
    run_id: str,
    shard: Shard | None,
    waiting: Callable[[str], None],
    called_off: threading.Event,
) -> Iterator[Hold]:
    """Hold an archive, or one shard's share of it, until the context ends.

    `waiting` is told in words why it takes a while, and `called_off` ends that.

    Raises:
        DestinationError: another run holds it, or a shard of another number of shards does; or it
            was called off.
    """
    lease = Lease(
        run_id=run_id,
        pid=os.getpid(),
        host=socket.gethostname(),
        among=_among(),
        shard=str(shard) if shard else None,
    )
    path = _path(owner_of(shard))
    with named(store.url), ExitStack() as stack:
        holding = Hold(store, path, lease, _taken(store, path, lease, waiting, called_off))
        stack.callback(holding.give_back)
        with suppress(FileExistsError):
            store.put(path, b"")
            store.delete(path)
            raise DestinationError(
                f"{store.url} overwrites what is only to be put where there is nothing: use a "
                "store that heeds If-None-Match, as S3 does"
            )
        holding.start()
        for other in _paths(store):
            if other == path or (shard and _is_of(other, shard.shares)):
                continue
            version = _taken(store, other, lease, waiting, called_off)
            if store.get(other)[1].etag == version.etag:
                store.delete(other)
        stack.pop_all()
    try:
        yield holding
    finally:
        holding.give_back()


def _taken(
    store: Store,
    path: str,
    lease: Lease,
    waiting: Callable[[str], None],
    called_off: threading.Event,
) -> Version:
    """Return the version of a lease that is ours now."""
    seen: Version | None = None
    deadline = time.monotonic() + LEASE_S
    while time.monotonic() < deadline + _GIVE_UP_S:
        if called_off.is_set():
            raise DestinationError(f"{store.url} was not waited for to its end")
        try:
            return store.put(path, _written(lease))
        except FileExistsError:
            pass
        try:
            data, version = store.get(path)
        except FileNotFoundError:
            called_off.wait(_LOOK_S)
            continue
        holder = _read(data)
        if holder == lease:
            return version  # the answer to our own was lost
        if seen is None:
            seen = version
            if holder and not holder.has_died():
                waiting(
                    f"{store.url} may be held by run {holder.run_id} (process {holder.pid} on "
                    f"{holder.host}): looking for {LEASE_S:.0f} s at most whether that is at work"
                )
        if version.etag != seen.etag:
            which = f" for shard {lease.shard}" if lease.shard else ""
            who = f" (run {holder.run_id}, process {holder.pid} on {holder.host})" if holder else ""
            raise DestinationError(f"{store.url} is held{which} by another run{who}: wait for it")
        if time.monotonic() > deadline or (holder and holder.has_died()):
            # Another one may be taking it over, too.
            with suppress(OSError):
                return store.put(path, _written(lease), version)
        called_off.wait(_LOOK_S)
    raise DestinationError(
        f"{store.url}/{path} can be neither made nor taken over: use a store that heeds "
        "If-None-Match and If-Match, as S3 does"
    )


def _read(data: bytes) -> Lease | None:
    try:
        return Lease.model_validate_json(data)
    except ValidationError:
        return None


def _written(lease: Lease) -> bytes:
    return f"{lease.model_dump_json()}\n".encode()


def _among() -> str:
    """Name this start of the machine, and the container in it; "" where that cannot be told."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{started} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _path(owner: str) -> str:
    return f"{PRIVATE}/{_PREFIX}{owner and f'-{owner}'}.json"


def _is_of(path: str, shares: int) -> bool:
    return path.endswith(f"-of-{shares}.json")


def _paths(store: Store) -> list[str]:
    return [
        found.path
        for found in store.level(PRIVATE)[1]
        if found.path.startswith(f"{PRIVATE}/{_PREFIX}") and found.path.endswith(".json")
    ]
