"""An archive in an object store.

A store makes an object whole or not at all, and only where there is none if that is asked for; so
there are no parts, no locks on directories and nothing to wait for. An image's object is put first
and its sidecar last, both only where there is none.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self, TypeVar

from bulkfetch.archive import files
from bulkfetch.archive.base import Again, Holdings, Identity, Stage, Writer
from bulkfetch.archive.growing import StoreFile, StoreJournal
from bulkfetch.archive.identity import IDENTITY_PATH, claimed, identity_for, parsed
from bulkfetch.archive.lease import Watch, follow, hold
from bulkfetch.archive.lock import owner_of
from bulkfetch.archive.look import look, names_of, paths_of
from bulkfetch.archive.store_folder import Leftovers, StoreFolder, StoreTroubleError, Unused
from bulkfetch.archive.store_stage import PART_BYTES, Memory, StoreStage
from bulkfetch.archive.store_tree import StoreTree
from bulkfetch.archive.threads import Threads
from bulkfetch.archive.tree import Tree
from bulkfetch.errors import DestinationError, ServiceDownError, TakenError
from bulkfetch.logs import Event, about
from bulkfetch.models import Shard, Sidecar, json_text
from bulkfetch.paths import PRIVATE
from bulkfetch.plan import Level, Place
from bulkfetch.stores import READ_RETRIES, StoreError, open_store
from bulkfetch.stores.store import Store, Upload

# What all bodies together may take beyond their first megabyte: two of the longest, at least.
MEMORY_BYTES = 2**27
# Each waits for one answer of the store.
_THREADS = 64
# Google takes an object anew once a second at most.
WRITE_EVERY_S = 5.0
_PROCESSES_AT_MOST = 10**6

log = logging.getLogger(__name__)

T = TypeVar("T")


class StoreArchive:
    """What lies below a URL of an object store, held by one run at a time; see `OpenArchive`."""

    def __init__(
        self,
        patient: Store,
        run_id: str,
        identity: Identity,
        *,
        again: Again,
        writer: Writer | None = None,
        held: Watch | None = None,
    ) -> None:
        self.writer = writer
        self.is_recognised = False
        # For what is no image: nothing but a store's own patience sees to that.
        self._patient = patient
        self._store = open_store(patient.url)
        self.tree: Tree = StoreTree(patient)
        self._run_id = run_id
        self._identity = identity
        self._again = again
        self._held = held
        self._threads = Threads(_THREADS, "store")
        self.memory = Memory(MEMORY_BYTES)
        # None that another process of this run counts.
        self._numbers = itertools.count(int(writer.process) if writer else 0, _PROCESSES_AT_MOST)
        self._left = Leftovers(self._store)
        self._claiming = threading.Lock()
        self._written_at = -WRITE_EVERY_S
        self._unused = Unused() if writer and writer.is_first else None

    @staticmethod
    def check(url: str, identity: Identity) -> None:
        """Say what is wrong with a destination, creating nothing.

        Raises:
            ConfigurationError: it is no URL of a store that is known.
            DestinationError: it cannot be read, or there is no such bucket.
            ArchiveMismatchError: it is another account's archive.
        """
        store = open_store(url, retries=READ_RETRIES)
        with files.named(url):
            if identity_for(StoreTree(store), identity) is None:
                store.level(PRIVATE)

    @classmethod
    @contextmanager
    def open(
        cls,
        url: str,
        run_id: str,
        identity: Identity,
        *,
        shard: Shard | None,
        again: Again,
        called_off: threading.Event,
    ) -> Iterator[Self]:
        """Make or open an archive, and hold it to the end; see `hold` for `called_off`.

        Raises:
            DestinationError: it cannot be written, another run holds it, or it was called off.
            ArchiveMismatchError: it is another account's archive.
        """
        patient = open_store(url, retries=READ_RETRIES)
        with hold(patient, run_id, shard, _tell_of_waiting, called_off) as held:
            with files.named(url):
                found = identity_for(StoreTree(patient), identity)
                if found is None:
                    # A shard beside this one may be doing the same.
                    with suppress(FileExistsError):
                        patient.create(IDENTITY_PATH, _json(identity))
                    found = identity_for(StoreTree(patient), identity)
                if found is None:
                    raise DestinationError(
                        f"{url}/{IDENTITY_PATH} is not there although the store took it: try again"
                    )
                private = f"{PRIVATE}/"
                is_first = all(found.path.startswith(private) for found in patient.objects())
            writer = Writer(owner_of(shard), "1", (), is_first)
            archive = cls(patient, run_id, found, again=again, writer=writer, held=held)
            with archive._threads:
                yield archive

    @classmethod
    @contextmanager
    def join(
        cls,
        url: str,
        run_id: str,
        identity: Identity,
        first: Writer,
        number: int,
        *,
        again: Again,
    ) -> Iterator[Self]:
        """Open an archive that the first process of this run holds, as its `number`-th.

        Raises:
            DestinationError: it cannot be read.
            ArchiveMismatchError: it is another account's archive.
        """
        patient = open_store(url, retries=READ_RETRIES)
        with files.named(url):
            found = identity_for(StoreTree(patient), identity)
        writer = first._replace(process=str(number))
        with follow(patient, run_id, first.owner) as held:
            archive = cls(patient, run_id, found or identity, again=again, writer=writer, held=held)
            with archive._threads:
                yield archive

    @classmethod
    @contextmanager
    def read_only(cls, url: str, identity: Identity, again: Again) -> Iterator[Self]:
        """Open an archive to look into it; there need not be one.

        Raises:
            ArchiveMismatchError: it is another account's archive.
        """
        patient = open_store(url, retries=READ_RETRIES)
        with files.named(url):
            found = identity_for(StoreTree(patient), identity)
        archive = cls(patient, "", found or identity, again=again)
        with archive._threads:
            yield archive

    async def look(
        self,
        places: Sequence[Place],
        own: Sequence[Level] | None = None,
        elsewhere: Sequence[str] = (),
        *,
        rehash: bool,
    ) -> Holdings:
        """See `OpenArchive.look`: one listing a directory, and a request for each sidecar.

        None where this run is the first, and has put nothing there. What another process or shard
        put there meanwhile is found when the same is to be put again, which looks.
        """
        is_looked_at_first = own is not None
        if is_looked_at_first and self._unused and self._unused.take({p.directory for p in places}):
            return Holdings([None] * len(places))

        def look_now() -> Holdings:
            beside = [*(paths_of(self._branches, own) if own else ()), *elsewhere]
            directories = dict.fromkeys([*(place.directory for place in places), *beside])
            folders: dict[str, StoreFolder] = {}

            @contextmanager
            def folder(path: str) -> Iterator[StoreFolder]:
                folders[path] = StoreFolder(self._store, path)
                yield folders[path]

            found = look(folder, places, directories, rehash=rehash, with_others=own is not None)
            if self.writer:
                for place, held in zip(places, found.held, strict=True):
                    self._left.note(place, held, folders[place.directory].names)
            return found

        return await self._do("looking for what is there", look_now)

    def stage(self, place: Place) -> StoreStage:
        """See `OpenArchive.stage`; before `publish` there are at most parts of a long upload."""
        return StoreStage(self, place)

    async def publish(self, stage: Stage, name: str, revision: int, sidecar: Sidecar) -> str:
        """See `OpenArchive.publish`; a long image gets a name of its own, as where one is taken.

        The sidecar names the object. What a killed run left of the same image goes after that.
        """
        if not isinstance(stage, StoreStage) or sidecar.file is None:
            raise TypeError("a stage is published by the archive that made it")
        place, sha256 = stage.place, sidecar.file.sha256
        path = f"{place.directory}/{name}"
        beside = f"{place.directory}/{place.sidecar(revision)}"
        put_at = await stage.finished(sha256)
        apart = self._apart(path)

        # All in one thread: the way there and back takes longer than what is done there.
        def put() -> str:
            nonlocal put_at
            # Not again where only the sidecar is tried again.
            put_at = put_at or self._put_image(path, apart, beside, stage.whole)
            name = put_at.rpartition("/")[2]
            try:
                digest = self._put_sidecar(beside, _with_file(name, sidecar))
            except TakenError:
                self._left.remove_own(place, name)
                raise
            self._left.remove(place)
            return digest

        return await self._do(path, put)

    async def note(self, place: Place, revision: int, sidecar: Sidecar) -> str:
        """See `OpenArchive.note`."""
        path = f"{place.directory}/{place.sidecar(revision)}"
        return await self._do(path, lambda: self._put_sidecar(path, sidecar))

    async def check_room(self) -> None:
        """See `OpenArchive.check_room`: a store has no end, but the lease on it may."""
        if self._held:
            self._held.check()

    async def quarantine(self, place: Place) -> None:
        """See `OpenArchive.quarantine`: to `.bulkfetch/quarantine/<run_id>/<directory>/`."""
        await self._do(f"{place.directory}/{place.stem}", lambda: self._quarantine(place))

    async def claim(self, organization_id: str) -> None:
        """See `OpenArchive.claim`."""
        if self._identity.organization_id != organization_id:
            await self._do("whose archive it is", lambda: self._claim(organization_id))
        self.is_recognised = True

    def growing(self, name: str) -> StoreJournal | StoreFile:
        """See `OpenArchive.growing`: a journal by segments, any other file at its end."""
        path = f"{self._folder_path}/{name}"
        kind = StoreJournal if name.endswith(".jsonl") else StoreFile
        return kind(self._patient, path)

    def write(self, name: str, text: str, *, durable: bool = True) -> None:
        """See `OpenArchive.write`; what need not be durable is left out if it comes too often."""
        if not durable:
            if time.monotonic() - self._written_at < WRITE_EVERY_S:
                return
            self._written_at = time.monotonic()
        path = f"{self._folder_path}/{name}"
        with files.named(f"{self._store.url}/{path}"):
            self._patient.put(path, f"{text}\n".encode(), "overwrite")

    def remove(self, name: str) -> None:
        """See `OpenArchive.remove`."""
        with suppress(OSError):
            self._store.delete(f"{self._folder_path}/{name}")

    def process_died(self) -> None:
        """See `OpenArchive.process_died`: nothing is half-made in a store."""

    @property
    def _folder_path(self) -> str:
        return f"{PRIVATE}/runs/{self._run_id}"

    def begun(self, path: str) -> Upload:
        """See `Uploader.begun`."""
        return self._store.upload(self._apart(path), PART_BYTES)

    def finish(self, upload: Upload, sha256: str) -> None:
        """See `Uploader.finish`: it is read back, since not every store checks each part."""
        upload.finish()
        self._store.prove(upload.path, sha256)

    async def run(self, work: Callable[[], T]) -> T:
        """See `Uploader.run`."""
        if self._held:
            self._held.check()

        def tried() -> T:
            try:
                return work()
            except StoreError as error:
                if not error.retryable:
                    raise
                raise StoreTroubleError(f"{self._store.url}: {error.strerror}") from None

        with files.named(self._store.url):
            return await self._threads.run(tried)

    async def _do(self, what: str, work: Callable[[], T]) -> T:
        """Do work in a thread, again while it fails with what may pass.

        Raises:
            DestinationError: it was in vain.
        """
        try:
            return await self._again(what, lambda: self.run(work))
        except (StoreTroubleError, ServiceDownError) as error:
            raise DestinationError(
                f"{error}: what was finished is whole; run the same command again"
            ) from error

    def _put_image(self, path: str, apart: str, sidecar: str, data: bytearray) -> str:
        try:
            self._store.create(path, data)
        except FileExistsError:
            # Put apart, it would stay without a sidecar.
            with suppress(FileNotFoundError):
                self._store.head(sidecar)
                raise _taken() from None
            path = apart
            self._store.create(path, data)
        return path

    def _put_sidecar(self, path: str, sidecar: Sidecar) -> str:
        data = f"{json_text(sidecar, indent=2)}\n".encode()
        try:
            self._store.create(path, data)
        except FileExistsError:
            raise _taken() from None
        return hashlib.sha256(data).hexdigest()

    def _apart(self, path: str) -> str:
        """Return a path that no other run, and nothing else in this one, has."""
        stem, _, ending = path.rpartition(".")
        return f"{stem}.{self._run_id.rpartition('-')[2]}-{next(self._numbers)}.{ending}"

    def _branches(self, above: str) -> Iterator[str]:
        yield from self._store.level(above.rstrip("/"))[0]

    @contextmanager
    def _folder(self, path: str) -> Iterator[StoreFolder]:
        yield StoreFolder(self._store, path)

    def _quarantine(self, place: Place) -> None:
        (held,) = look(self._folder, [place], [place.directory], rehash=True).held
        if held is None or held.damage is None:
            raise TakenError("another row or shard mended the image meanwhile")
        there = f"{PRIVATE}/quarantine/{self._run_id}/{place.directory}"
        known = self._store.level(there)[1]
        taken = {found.name for found in known}
        # The first sidecar is the last to go: what is broken off before is damaged still.
        for name in reversed(names_of(place, StoreFolder(self._store, place.directory).names)):
            again = (f"{name}~{number}" for number in itertools.count(2))
            free = next(n for n in itertools.chain([name], again) if n not in taken)
            self._store.copy(f"{place.directory}/{name}", f"{there}/{free}")
            if self._held:
                self._held.check()
            self._store.delete(f"{place.directory}/{name}")

    def _claim(self, organization_id: str) -> None:
        # Another task may be doing the same, and so may a shard beside this one.
        with self._claiming:
            try:
                data, version = self._store.get(IDENTITY_PATH)
            except FileNotFoundError:
                return  # a dry run, where there is no archive yet
            found = parsed(self.tree, data)
            identity = claimed(self.tree, found, organization_id)
            if found.organization_id is None and self.writer is not None:
                try:
                    self._store.put(IDENTITY_PATH, _json(identity), version)
                except StoreError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    # For the same organization, perhaps: that is to be looked at.
                    what = "another writer was at archive.json"
                    raise StoreError(errno.EBUSY, what, retryable=True) from None
            self._identity = identity


def _with_file(name: str, sidecar: Sidecar) -> Sidecar:
    if sidecar.file is None or sidecar.file.path == name:
        return sidecar
    return sidecar.model_copy(update={"file": sidecar.file.model_copy(update={"path": name})})


def _taken() -> TakenError:
    return TakenError("another row or shard archived the image meanwhile")


def _json(identity: Identity) -> bytes:
    return f"{identity.model_dump_json(indent=2)}\n".encode()


def _tell_of_waiting(why: str) -> None:
    log.warning("%s", why, extra=about(Event.lease_waited_for))
