"""An archive as a Python program reads it: its images, what is known of each, and its runs."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeVar

from pydantic import ValidationError

from bulkfetch.archive import Identity, Tree, files, tree_at
from bulkfetch.archive.identity import archive_at
from bulkfetch.archive.look import parse_sidecar, paths_of
from bulkfetch.archive.tree import NO_FILE, read
from bulkfetch.chain import RUNS, runs_of
from bulkfetch.errors import DamagedError
from bulkfetch.models import FileInfo, ManifestRow, Sidecar, Summary
from bulkfetch.outcomes import ImageEnded
from bulkfetch.paths import PRIVATE, SIDECAR_NAME, parse_template, safe_name
from bulkfetch.plan import Place, levels_of

# Each waits for a disk, or for one answer of a store; images that one takes at once.
_THREADS = 16
_TOGETHER = 64
# A summary has some hundred bytes.
_LONGEST_SUMMARY = 2**20

# A patient's directory is looked for in all of those above it.
_NO_BOUND = 2**62

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """One version of an image in an archive.

    Attributes:
        directory: where it lies, relative to the archive and divided by "/".
        states: its sidecars: the first, then each revision, which says what changed since.
        is_latest: there is no later version of it in the directory. A `--path-template` may have
            versions in several ones.
    """

    directory: str
    states: tuple[Sidecar, ...]
    is_latest: bool

    @property
    def sidecar(self) -> Sidecar:
        """How it is now: the last of its states."""
        return self.states[-1]

    @property
    def path(self) -> str | None:
        """Its file, relative to the archive; None where it has none, as it was not uploaded."""
        file = self.sidecar.file
        return f"{self.directory}/{file.path}" if file else None


@dataclass(frozen=True, slots=True)
class ArchivedRun:
    """A run that wrote to an archive; `summary` is None for one that is at work or was killed."""

    run_id: str
    summary: Summary | None


class Archive:
    """What lies in an archive, to be read: a context, in which nothing is written.

    A run may be at work meanwhile: what is there is whole. Memory is the same for any number of
    images, as far as one directory does not hold them all.

        async with Archive("archive") as archive:
            async for image in archive.images():
                print(image.sidecar.image_id, image.path)

    Args:
        out: a path, or a URL as `--out` takes it.

    Raises:
        ConfigurationError: there is no archive, it is of another layout, or it is a URL of no store
            that is known.
        DestinationError: it cannot be read.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self._out = os.fspath(out)
        self._pool: ThreadPoolExecutor
        self._tree: Tree
        self._identity: Identity

    async def __aenter__(self) -> Self:
        with files.named(self._out):
            self._tree = await asyncio.to_thread(tree_at, self._out)
            self._identity = await asyncio.to_thread(archive_at, self._tree)
        self._pool = ThreadPoolExecutor(_THREADS, "archive")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    @property
    def identity(self) -> Identity:
        """Whose archive it is: the API's host, the organization, and how its paths are made."""
        return self._identity

    async def images(
        self, *, damaged: Callable[[DamagedError], None] | None = None
    ) -> AsyncGenerator[ArchivedImage]:
        """Yield every version of every image, in no order; those of a directory follow each other.

        Files are not looked at. `damaged` is told of each image whose sidecars cannot be used, and
        the others are yielded.

        Raises:
            DamagedError: a sidecar cannot be used, where there is no `damaged` to be told.
            ArchiveMismatchError: a later version of bulkfetch wrote it.
            DestinationError: the archive cannot be read.
        """
        depth = len(parse_template(self._identity.path_template))
        async for image in self._images(self._tree.folders(depth), damaged):
            yield image

    async def images_of(
        self, patient_id: str, *, damaged: Callable[[DamagedError], None] | None = None
    ) -> AsyncGenerator[ArchivedImage]:
        """Yield every version of the images that were archived as one patient's.

        One that moved to another patient since is among them, and its state says so. Where the
        `--path-template` has no patient in it, all images are looked at.

        Raises the same as `images`.
        """
        row = ManifestRow(line=0, patient_id=patient_id)
        levels = levels_of(row, self._identity.path_template)
        paths = paths_of(self._branches, levels, at_most=_NO_BOUND)
        folders = ((path, self._names(path)) for path in paths)
        async for image in self._images(folders, damaged):
            if image.states[0].patient_id == patient_id:
                yield image

    async def image(self, ended: ImageEnded) -> ArchivedImage | None:
        """Return the image that a run told of; None where the archive has none of that version.

        Raises the same as `images`.
        """
        stem = f"{safe_name(ended.image_id)}.v{ended.version}"
        for found in _found_in(ended.directory, await self._do(self._names, ended.directory)):
            if found.place.stem == stem:
                return await self._do(self._image, found)
        return None

    async def read(self, image: ArchivedImage) -> bytes:
        """Return an image's bytes, which are those that were archived: they are hashed anew.

        Raises:
            ValueError: it has no file, since it was not uploaded.
            DamagedError: its file is missing, or was changed.
            DestinationError: it cannot be read.
        """
        return await self._do(self._read, *_file_of(image))

    async def open(self, image: ArchivedImage) -> BinaryIO:
        """Open an image's file, which the caller closes; reading it blocks, and is not checked.

        Raises the same as `read`, but for a file that was changed.
        """
        return await self._do(self._open, _file_of(image)[0])

    async def runs(self) -> list[ArchivedRun]:
        """Return the runs that wrote to the archive, the first of them first.

        Raises:
            DamagedError: a run's summary cannot be used.
            DestinationError: the archive cannot be read.
        """
        return await self._do(self._runs)

    async def _images(
        self,
        folders: Generator[tuple[str, Collection[str]]],
        damaged: Callable[[DamagedError], None] | None,
    ) -> AsyncGenerator[ArchivedImage]:
        found = (one for folder in folders for one in _found_in(*folder))
        waiting: deque[asyncio.Future[list[ArchivedImage | DamagedError]]] = deque()
        try:
            while batch := await self._do(lambda: list(islice(found, _TOGETHER))):
                waiting.append(asyncio.ensure_future(self._do(self._all, batch)))
                if len(waiting) >= _THREADS:
                    for image in _undamaged(await waiting.popleft(), damaged):
                        yield image
            while waiting:
                for image in _undamaged(await waiting.popleft(), damaged):
                    yield image
        finally:
            found.close()
            folders.close()
            for future in waiting:
                future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        """Do work in a thread, to its end even when cancelled."""
        with files.named(self._tree.name):
            loop = asyncio.get_running_loop()
            return await files.to_its_end(loop.run_in_executor(self._pool, work, *arguments))

    def _all(self, batch: Sequence[_Found]) -> list[ArchivedImage | DamagedError]:
        images: list[ArchivedImage | DamagedError] = []
        for found in batch:
            try:
                images.append(self._image(found))
            except DamagedError as error:
                images.append(error)
        return images

    def _image(self, found: _Found) -> ArchivedImage:
        place = found.place
        states = tuple(self._state(place, n) for n in range(1, found.revision + 1))
        file = states[-1].file
        if file and not place.owns(file.path):
            path = f"{place.directory}/{place.sidecar(found.revision)}"
            raise DamagedError(path, "it names a file that is not its own")
        return ArchivedImage(place.directory, states, found.is_latest)

    def _state(self, place: Place, revision: int) -> Sidecar:
        path = f"{place.directory}/{place.sidecar(revision)}"
        with self._open(path) as file:
            raw = file.read()
        try:
            return parse_sidecar(raw)
        except (ValueError, RecursionError):
            raise DamagedError(path, "it is no sidecar, or not a whole one") from None

    def _open(self, path: str) -> BinaryIO:
        try:
            return self._tree.open(path)
        except (FileNotFoundError, NotADirectoryError):
            raise DamagedError(path, "it is missing") from None
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            raise DamagedError(path, "a link or something else lies in its place") from None

    def _read(self, path: str, file: FileInfo) -> bytes:
        with self._open(path) as opened:
            # Not so many bytes as the sidecar says, which may be any number.
            is_whole = opened.seek(0, os.SEEK_END) == file.size
            opened.seek(0)
            data = opened.read(file.size) if is_whole else b""
        if not is_whole or hashlib.sha256(data).hexdigest() != file.sha256:
            raise DamagedError(path, "its bytes are not those that were archived")
        return data

    def _runs(self) -> list[ArchivedRun]:
        return [ArchivedRun(run_id, self._summary(run_id)) for run_id in runs_of(self._tree)]

    def _summary(self, run_id: str) -> Summary | None:
        path = f"{RUNS}/{run_id}/summary.json"
        try:
            return Summary.model_validate_json(read(self._tree, path, _LONGEST_SUMMARY))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise DamagedError(path, "it is no summary, or not a whole one") from None

    def _names(self, directory: str) -> Collection[str]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return self._tree.names(directory)
        return ()

    def _branches(self, above: str) -> Collection[str]:
        return [name for name in self._names(above.rstrip("/")) if above + name != PRIVATE]


class _Found(NamedTuple):
    """An image by the names of its sidecars, up to the highest `revision`."""

    place: Place
    revision: int
    is_latest: bool


def _found_in(directory: str, names: Collection[str]) -> Iterator[_Found]:
    images: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for name in names:
        if match := SIDECAR_NAME.fullmatch(name):
            versions, version = images[match["image"]], int(match["version"])
            versions[version] = max(versions.get(version, 0), int(match["revision"] or 1))
    for image, versions in images.items():
        for version, revision in versions.items():
            place = Place(directory, f"{image}.v{version}")
            yield _Found(place, revision, version == max(versions))


def _undamaged(
    images: Sequence[ArchivedImage | DamagedError],
    damaged: Callable[[DamagedError], None] | None,
) -> Iterator[ArchivedImage]:
    for image in images:
        if isinstance(image, ArchivedImage):
            yield image
        elif damaged is None:
            raise image
        else:
            damaged(image)


def _file_of(image: ArchivedImage) -> tuple[str, FileInfo]:
    path, file = image.path, image.sidecar.file
    if path is None or file is None:
        status = image.sidecar.status
        raise ValueError(f"image {image.sidecar.image_id} has no file: its status is {status}")
    return path, file
