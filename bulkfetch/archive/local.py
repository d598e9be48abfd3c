"""An archive in a directory of this machine.

Every path is opened relative to its directory's descriptor and never through a symbolic link, so
that neither a name nor a link that somebody planted leads out of the archive.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Self

from bulkfetch.archive import files
from bulkfetch.archive.base import Holdings, Identity, Stage, Writer
from bulkfetch.archive.commit import Committer, Job, NewFile
from bulkfetch.archive.identity import claimed, identity_for
from bulkfetch.archive.lock import WHOLE, Hold, hold
from bulkfetch.archive.look import local_branches, local_folder, look, names_of, paths_of
from bulkfetch.archive.parts import Parts
from bulkfetch.archive.stage import LocalStage, in_thread
from bulkfetch.archive.tree import LocalTree, Tree
from bulkfetch.errors import DestinationError, TakenError
from bulkfetch.models import (
    Shard,
    Sidecar,
    json_text,
)
from bulkfetch.paths import PRIVATE, parse_template
from bulkfetch.plan import Level, Place

# A look at a patient's directory that takes longer waited for the disk; as the next ones will.
_SLOW_LOOK_S = 0.01
_LOOKS_IN_THREADS = 64


class LocalArchive:
    """A directory, held by one run at a time.

    Use `LocalArchive.open`; `check` says beforehand what would be wrong with a destination.

    See `OpenArchive` for its attributes.
    """

    def __init__(
        self, root: Path, run_id: str, identity: Identity, writer: Writer | None, *, durable: bool
    ) -> None:
        self.tree: Tree = LocalTree(root)
        self._root = root
        self._run_id = run_id
        self._identity = identity
        self.is_recognised = False
        self.writer = writer
        self._durable = durable
        owner, process = (writer.owner, writer.process) if writer else (WHOLE, "")
        self._has_neighbours = bool(owner != WHOLE or process)
        self._hold: Hold | None = None
        # A descriptor of the root, while the archive is open for writing.
        self._directory = -1
        self._slow_looks = 0
        self._room = files.Room(root)
        self._committer = Committer(
            self._make_directory,
            self._room.take,
            durable=durable,
            take_turns=self._has_neighbours,
        )
        self._parts = Parts(root, root / PRIVATE / "parts", owner, process)

    @staticmethod
    def check(out: str, identity: Identity) -> None:
        """Say what is wrong with a destination, creating nothing.

        Raises:
            DestinationError: it is no directory, cannot be written, or a summary cannot tell where
                it is.
            ArchiveMismatchError: it is another account's archive.
        """
        root = Path(out)
        with files.named(out):
            try:
                # The summary tells where failures are, and is JSON.
                os.path.realpath(out).encode()
            except ValueError:
                raise DestinationError(
                    f"{out!a} is no path in UTF-8: name another with --out"
                ) from None
            if root.exists():
                if not root.is_dir():
                    raise DestinationError(f"{out} is a file: name a directory with --out")
                _refuse_links(root)
                identity_for(LocalTree(root), identity)
                nearest = root
            else:
                nearest = files.nearest(root)
                if not nearest.is_dir():
                    raise DestinationError(
                        f"{out} cannot be made: {nearest} is a file; name another with --out"
                    )
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise DestinationError(
                    f"{nearest} cannot be written: get write access, or name another with --out"
                )

    @classmethod
    @contextmanager
    def open(
        cls,
        out: str,
        run_id: str,
        identity: Identity,
        *,
        shard: Shard | None = None,
        durable: bool = True,
        is_joined: bool = False,
    ) -> Iterator[Self]:
        """Make or open an archive, clear away what dead runs left, and hold it to the end.

        `is_joined` says that other processes are going to `join`.

        Raises:
            DestinationError: it cannot be written, or another run holds it.
            ArchiveMismatchError: it is another account's archive.
        """
        root, private = Path(out), Path(out) / PRIVATE
        with files.named(out):
            files.make_directory(root)
            _refuse_links(root)
            files.make_directory(private)
        with hold(private, run_id, shard) as held, ExitStack() as stack:
            with files.named(out):
                files.Room(root).look()
                with files.descriptor(private) as directory, files.alone(directory):
                    found = identity_for(LocalTree(root), identity)
                    process = _process(run_id, 1) if is_joined else ""
                    writer = Writer(held.owner, process, held.locks)
                    archive = cls(
                        root.resolve(), run_id, found or identity, writer, durable=durable
                    )
                    if found is None:
                        archive._write_identity(identity)
                files.make_directory(archive._folder)
                archive._parts.load()
                archive._parts.sweep(len(parse_template(identity.path_template)), held.dead)
                held.cleared()
                archive._hold = held
                stack.enter_context(archive._writing())
            yield archive

    @classmethod
    @contextmanager
    def join(
        cls, out: str, run_id: str, identity: Identity, first: Writer, number: int, *, durable: bool
    ) -> Iterator[Self]:
        """Open an archive that the first process of this run holds, as its `number`-th.

        Raises:
            DestinationError: it cannot be written, or is not the one that the first process holds.
            ArchiveMismatchError: it is another account's archive.
        """
        root = Path(out)
        with ExitStack() as stack:
            with files.named(out):
                if not (root / PRIVATE / "runs" / run_id).is_dir():
                    raise DestinationError(
                        f"{out} on {socket.gethostname()} is not the archive that this run began: "
                        "name a directory with --out that every machine of the run has there"
                    )
                found = identity_for(LocalTree(root), identity)
                writer = first._replace(process=_process(run_id, number))
                archive = cls(root.resolve(), run_id, found or identity, writer, durable=durable)
                archive._parts.load()
                stack.enter_context(archive._writing())
            yield archive

    @classmethod
    @contextmanager
    def read_only(cls, out: str, identity: Identity) -> Iterator[Self]:
        """Open an archive to look into it; there need not be one.

        Raises:
            ArchiveMismatchError: it is another account's archive.
        """
        root = Path(out)
        with files.named(out):
            found = identity_for(LocalTree(root), identity)
        yield cls(root.absolute(), "", found or identity, None, durable=False)

    def process_died(self) -> None:
        """See `OpenArchive.process_died`."""
        if self._hold is not None:
            self._hold.not_cleared()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with files.descriptor(self._root) as self._directory:
            try:
                self._committer.open()
                yield
            finally:
                self._committer.close()

    @property
    def _folder(self) -> Path:
        return self._root / PRIVATE / "runs" / self._run_id

    def growing(self, name: str) -> files.GrowingFile:
        """See `OpenArchive.growing`."""
        return files.GrowingFile(self._folder / name)

    def write(self, name: str, text: str, *, durable: bool = True) -> None:
        """See `OpenArchive.write`."""
        self._write(self._folder / name, text, durable=durable)

    def remove(self, name: str) -> None:
        """See `OpenArchive.remove`."""
        with suppress(OSError):
            (self._folder / name).unlink()

    async def look(
        self,
        places: Sequence[Place],
        own: Sequence[Level] | None = None,
        elsewhere: Sequence[str] = (),
        *,
        rehash: bool,
    ) -> Holdings:
        """See `OpenArchive.look`.

        A look at what the system has in memory takes less than the way to a thread; so it is tried
        without one, and the disk is not waited for twice in a row.
        """
        branches = partial(local_branches, self._root)
        beside = [*(paths_of(branches, own) if own else ()), *elsewhere]
        directories = dict.fromkeys([*(place.directory for place in places), *beside])
        if not any(map(self._has_directory, directories)):
            return Holdings([None] * len(places))

        def look_now() -> Holdings:
            return look(
                partial(local_folder, self._root),
                places,
                directories,
                rehash=rehash,
                with_others=own is not None,
            )

        if rehash or self._slow_looks:
            self._slow_looks = max(0, self._slow_looks - 1)
            return await in_thread(look_now)
        began = time.monotonic()
        with files.named():
            found = look_now()
        if time.monotonic() - began > _SLOW_LOOK_S:
            self._slow_looks = _LOOKS_IN_THREADS
        return found

    def _has_directory(self, path: str) -> bool:
        try:
            (self._root / path).lstat()
        except FileNotFoundError:
            return False
        except OSError:
            pass  # whatever lies there is looked at, and named, by `look`
        return True

    def stage(self, place: Place) -> LocalStage:
        """See `OpenArchive.stage`; nothing is on disk before the first `KEPT_OVER_BYTES`."""
        return LocalStage(
            place, lambda: self._make_directory(place.directory), self._room.take, self._parts
        )

    async def publish(self, stage: Stage, name: str, revision: int, sidecar: Sidecar) -> str:
        """See `OpenArchive.publish`."""
        if not isinstance(stage, LocalStage):
            raise TypeError("a stage is published by the archive that made it")
        if stage.file is not None:
            await stage.spill()
        return await self._commit(stage.place, stage.on_disk(name), revision, sidecar)

    async def note(self, place: Place, revision: int, sidecar: Sidecar) -> str:
        """See `OpenArchive.note`."""
        return await self._commit(place, None, revision, sidecar)

    async def _commit(
        self, place: Place, image: NewFile | None, revision: int, sidecar: Sidecar
    ) -> str:
        name = place.sidecar(revision)
        data = f"{json_text(sidecar, indent=2)}\n".encode()
        sidecar_file = NewFile(self._parts.name(name), name, data)
        await self._committer.do(Job(place.directory, image, sidecar_file))
        return hashlib.sha256(data).hexdigest()

    async def check_room(self) -> None:
        """See `OpenArchive.check_room`."""
        await in_thread(self._room.look)

    async def quarantine(self, place: Place) -> None:
        """See `OpenArchive.quarantine`: to `.bulkfetch/quarantine/<run_id>/<directory>/`."""
        await in_thread(lambda: self._quarantine(place))

    async def claim(self, organization_id: str) -> None:
        """See `OpenArchive.claim`."""
        if self._identity.organization_id != organization_id:
            await in_thread(lambda: self._claim(organization_id))
        self.is_recognised = True

    def _claim(self, organization_id: str) -> None:
        private = self._root / PRIVATE
        with ExitStack() as stack:
            if self.writer is not None:
                # Another task, or a shard beside this one, may be doing the same.
                stack.enter_context(files.alone(stack.enter_context(files.descriptor(private))))
            found = identity_for(self.tree, self._identity) or self._identity
            identity = claimed(self.tree, found, organization_id)
            if found.organization_id is None and self.writer is not None:
                self._write_identity(identity)
            self._identity = identity

    def _write_identity(self, identity: Identity) -> None:
        self._write(self._root / PRIVATE / "archive.json", identity.model_dump_json(indent=2))

    def _write(self, path: Path, text: str, *, durable: bool = True) -> None:
        with files.named(str(path)), files.descriptor(path.parent) as directory:
            part, data = self._parts.name(path.name), f"{text}\n".encode()
            durable = durable and self._durable
            files.write_whole(directory, part, path.name, data, durable=durable)

    def _make_directory(self, path: str) -> int:
        return files.open_directory(path, self._directory, make=True, durable=self._durable)

    @contextmanager
    def _turn_in(self, name: str) -> Iterator[int]:
        directory = self._make_directory(name)
        try:
            with files.alone(directory) if self._has_neighbours else nullcontext():
                yield directory
        finally:
            os.close(directory)

    def _quarantine(self, place: Place) -> None:
        there = f"{PRIVATE}/quarantine/{self._run_id}/{place.directory}"
        with self._turn_in(place.directory) as directory, files.descriptor(self._root) as root:
            folder_at = partial(local_folder, self._root)
            (held,) = look(folder_at, [place], [place.directory], rehash=True).held
            if held is None or held.damage is None:
                raise TakenError("another row or shard mended the image meanwhile")
            target = files.open_directory(there, root, make=True)
            try:
                # The sidecars first: a file without one is not yet archived, and does no harm.
                # A file without a sidecar is not yet archived, and does no harm.
                for name in names_of(place, os.listdir(directory)):  # noqa: PTH208  of a descriptor
                    # What was damaged twice in one run is kept twice.
                    again = (f"{name}~{number}" for number in count(2))
                    free = next(n for n in chain([name], again) if not files.exists(n, target))
                    os.rename(name, free, src_dir_fd=directory, dst_dir_fd=target)
                if self._durable:
                    os.fsync(target)
                    os.fsync(directory)
            finally:
                os.close(target)


def _process(run_id: str, number: int) -> str:
    return f"{run_id.rpartition('-')[2]}-{number}"


def _refuse_links(root: Path) -> None:
    for name in ("", "runs", "parts", "quarantine"):
        path = root / PRIVATE / name
        if path.is_symlink():
            raise DestinationError(f"{path} is a symbolic link, which is not followed: remove it")
