"""One object store: what may be asked of it.

The calls block, and are made in threads: those of `obstore` that are awaited can end a process by a
signal when it ends soon after (https://github.com/PyO3/pyo3-async-runtimes/issues/40).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

import obstore
from obstore import exceptions
from obstore.store import ObjectStore, from_url
from yarl import URL

from bulkfetch.errors import ConfigurationError
from bulkfetch.logs import plain
from bulkfetch.stores import StoreError
from bulkfetch.stores.answers import translated

if TYPE_CHECKING:
    from obstore import ObjectMeta, WritableFile

_URL = re.compile(r"(?P<scheme>[A-Za-z0-9+.-]+)://(?P<bucket>[^/?#@]*)(?P<path>/[^?#]*)?")
# By their schemes the stores that are known, and where each cloud's own tools look for another
# endpoint than the cloud's; the first wins.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_CONNECT_S = 10
# For an answer's next bytes; and for a whole request, the largest of which is 64 MiB.
_SILENT_AT_MOST_S = 30
_REQUEST_S = 600
_READ_BYTES = 2**20
# Of a long object on its way, so much is in memory.
_BLOCK_BYTES = 2**23
# Another writer of the same object is waited for, a little longer each time.
_TURNS = 5
_TURN_S = 0.1
# No further try is begun after so long; so a store that never answers is given up after 60 s.
_PATIENCE_S = 45

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Object:
    """What a store says of an object; `path` is below the URL that the store was opened by."""

    path: str
    size: int
    etag: str | None
    modified_at: datetime

    @property
    def name(self) -> str:
        """Its name in its directory."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Version:
    """Which version of an object was written or read, as a store tells it."""

    etag: str | None
    version: str | None


class Store:
    """A bucket, or what lies below a prefix in it."""

    def __init__(self, url: str, store: ObjectStore, retries: int) -> None:
        self.url = url
        self._tries = 1 + retries
        self._store = store

    def get(self, path: str) -> tuple[bytes, Version]:
        """Return an object's bytes.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        with translated():
            answer = obstore.get(self._store, path)
            meta = answer.meta
            version = Version(meta["e_tag"], meta["version"])
            return bytes(answer.bytes()), version

    def head(self, path: str) -> Object:
        """Return what is known of an object without its bytes.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be told.
        """
        with translated():
            return _object(obstore.head(self._store, path))

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield an object's bytes, a megabyte or so at a time.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read, or not to its end.
        """
        with translated():
            for block in obstore.get(self._store, path).stream(min_chunk_size=_READ_BYTES):
                yield bytes(block)

    def sha256(self, path: str) -> str:
        """Return the digest of an object's bytes, in hex.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read, or not to its end.
        """
        digest = hashlib.sha256()
        for block in self.blocks(path):
            digest.update(block)
        return digest.hexdigest()

    def range(self, path: str, start: int, length: int) -> bytes:
        """Return some of an object's bytes.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        with translated():
            return bytes(obstore.get_range(self._store, path, start=start, length=length))

    def objects(self, directory: str = "") -> Iterator[Object]:
        """Yield all that lies below a directory, at any depth; nothing where nothing does.

        Raises:
            StoreError: it cannot be listed.
        """
        with translated():
            for some in obstore.list(self._store, directory or None):
                yield from _objects(some)

    def level(self, directory: str = "") -> tuple[list[str], list[Object]]:
        """Return the directories in a directory, by their names, and the objects.

        Raises:
            StoreError: it cannot be listed.
        """
        found = self._tried(lambda: obstore.list_with_delimiter(self._store, directory or None))
        below = [path.rpartition("/")[2] for path in found["common_prefixes"]]
        return below, list(_objects(found["objects"]))

    def put(
        self,
        path: str,
        data: bytes | bytearray,
        mode: Literal["create", "overwrite"] | Version = "create",
    ) -> Version:
        """Write an object: only where there is none, over whatever is there, or over one version.

        Raises:
            FileExistsError: there is one; or, as stores answer the same, another writer is at it.
            StoreError: it could not be written, or the version is another.
        """
        if isinstance(mode, Version):
            told = {"e_tag": mode.etag, "version": mode.version}
            how: Any = {name: value for name, value in told.items() if value is not None}
        else:
            how = mode
        return self._tried(lambda: self._put(path, data, how))

    def _tried(self, call: Callable[[], T]) -> T:
        """Make a call; again where `obstore` does not: refused, or its answer was broken off."""
        give_up_at = time.monotonic() + _PATIENCE_S
        for turn in range(self._tries):
            try:
                with translated():
                    return call()
            except StoreError as error:
                is_last = turn == self._tries - 1 or time.monotonic() > give_up_at
                if is_last or not error.retryable:
                    raise
            time.sleep(_TURN_S * 2**turn)
        raise AssertionError("the last try returns or raises")

    def _put(self, path: str, data: bytes | bytearray, how: Any) -> Version:  # noqa: ANN401  as `obstore` has it
        try:
            done = obstore.put(self._store, path, data, mode=how, use_multipart=False)
        except exceptions.AlreadyExistsError:
            if how != "create":
                raise
            raise FileExistsError(errno.EEXIST, "there is such an object already") from None
        return Version(done["e_tag"], done["version"])

    def create(self, path: str, data: bytes | bytearray) -> None:
        """Write an object where there is none, or find that it is there already, byte for byte.

        Where the store's ETag is no digest that proves it, it is read back. Stores answer the same
        where an object is there, where another writer is at it just now, and to a second try whose
        first one they did without its answer arriving.

        Raises:
            FileExistsError: there is another.
            StoreError: it could not be written, or the store has other bytes than were sent.
        """
        for turn in range(_TURNS):
            try:
                etag = (self.put(path, data).etag or "").strip('"')
            except FileExistsError:
                try:
                    if self.head(path).size != len(data):
                        raise
                    found, _ = self.get(path)
                except FileNotFoundError:
                    time.sleep(_TURN_S * 2**turn)
                    continue
                if found != data:
                    raise
                return
            if etag != hashlib.md5(data, usedforsecurity=False).hexdigest():
                self.prove(path, hashlib.sha256(data).hexdigest())
            return
        raise StoreError(errno.EBUSY, "another writer is at it", retryable=True)

    def prove(self, path: str, sha256: str) -> None:
        """Read an object that was written back.

        Raises:
            StoreError: it has another digest, or is not there.
        """
        with suppress(FileNotFoundError):
            if self.sha256(path) == sha256:
                return
        what = "the store has other bytes than were sent"
        raise StoreError(errno.EIO, what, retryable=True)

    def upload(self, path: str, buffer_bytes: int) -> Upload:
        """Begin to write a long object by parts.

        Raises:
            StoreError: it could not be begun.
        """
        with translated():
            # One part at a time: one that is on its way when the upload is dropped would keep it.
            writer = obstore.open_writer(
                self._store, path, buffer_size=buffer_bytes, max_concurrency=1
            )
            return Upload(self, path, writer)

    def put_long(self, path: str, blocks: Iterable[bytes]) -> None:
        """Write an object of any length, over whatever is there.

        Raises:
            StoreError: it could not be written.
        """
        upload = self.upload(path, _BLOCK_BYTES)
        try:
            for block in blocks:
                upload.write(block)
            upload.finish()
        except BaseException:
            upload.drop()
            raise

    def copy(self, path: str, to: str) -> None:
        """Copy an object within the store, and see that the copy is there.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it could not be copied.
        """
        with translated():
            obstore.copy(self._store, path, to)
        try:
            self.head(to)
        except FileNotFoundError:
            what = "the store says that it made a copy, and has none"
            raise StoreError(errno.EIO, what, retryable=True) from None

    def delete(self, path: str) -> None:
        """Remove an object, if there is one.

        Raises:
            StoreError: it could not be removed.
        """
        with translated():
            obstore.delete(self._store, path)


class Upload:
    """A long object on its way, by parts; `finish`, `drop` or `undo` ends it."""

    def __init__(self, store: Store, path: str, writer: WritableFile) -> None:
        self.path = path
        self._store = store
        self._writer = writer.__enter__()
        self._size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Add bytes.

        Raises:
            StoreError: they could not be written.
        """
        with translated():
            self._writer.write(data)
        self._size += len(data)

    def finish(self) -> None:
        """Make the object of its parts.

        Raises:
            StoreError: it could not be made, or is of another size than was written.
        """
        # Asked again since its answer was lost, a store may not know the upload any more.
        with suppress(FileNotFoundError), translated():
            self._writer.close()
        try:
            size = self._store.head(self.path).size
        except FileNotFoundError:
            size = 0
        if size != self._size:
            what = f"the store has {size} bytes of {self._size}"
            raise StoreError(errno.EIO, what, retryable=True)

    def drop(self) -> None:
        """Have the store forget its parts.

        Raises:
            StoreError: it could not be told so; a rule of the bucket's can see to what is left.
        """
        with translated():
            self._writer.__exit__(StoreError, StoreError(errno.ECANCELED, "dropped"), None)

    def undo(self) -> None:
        """Leave nothing of it, whether or not it was made; its name has to be nobody else's.

        Raises:
            StoreError: it could not be removed.
        """
        # One that was made, or may have been, has no parts to be dropped.
        with suppress(StoreError):
            self.drop()
        self._store.delete(self.path)


def opened(url: str, retries: int) -> Store:
    """See `open_store`."""
    shown = plain(url)
    found = _URL.fullmatch(url)
    scheme = found["scheme"].lower() if found else ""
    if not found or not found["bucket"] or scheme not in _ENDPOINTS:
        known = ", ".join(f"{scheme}://" for scheme in _ENDPOINTS)
        raise ConfigurationError(
            f"{shown} is none of the URLs that are known ({known}, each with a bucket; file://)"
        )
    path = (found["path"] or "").rstrip("/")
    if any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise ConfigurationError(f"{shown} has an empty name or dots in it: write it without them")
    # S3 refuses what does not arrive as it was sent; not all that speak it can delete in bulk.
    of_s3: Any = {"checksum_algorithm": "SHA256", "disable_bulk_delete": True}
    try:
        store = from_url(
            # As it stands: clouds' own tools take no %20 for a space, either.
            f"{scheme}://{found['bucket']}{quote(path)}",
            config=of_s3 if scheme == "s3" else None,
            client_options={
                "allow_http": _is_loopback(scheme),
                "connect_timeout": f"{_CONNECT_S}s",
                "read_timeout": f"{_SILENT_AT_MOST_S}s",
                "timeout": f"{_REQUEST_S}s",
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=_PATIENCE_S),
            },
        )
    except (exceptions.BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0].removeprefix("Generic ")
        raise ConfigurationError(f"{shown} cannot be opened: {reason}") from None
    return Store(url.rstrip("/"), store, retries)


def _is_loopback(scheme: str) -> bool:
    """Tell whether the endpoint is this machine, where HTTP is allowed.

    Raises:
        ConfigurationError: it is another one, and not over HTTPS.
    """
    name, endpoint = next(
        ((name, value) for name in _ENDPOINTS[scheme] if (value := os.environ.get(name))),
        ("", "https://"),
    )
    url = URL(endpoint)
    is_here = url.host in ("localhost", "127.0.0.1", "::1")
    if url.scheme != "https" and not is_here:
        raise ConfigurationError(f"{name} is {endpoint}: only HTTPS is safe for what is in there")
    return is_here


def _objects(some: Iterable[ObjectMeta]) -> Iterator[Object]:
    # A console's "new folder" is an empty object, named as the URL with a "/" at its end.
    return (_object(meta) for meta in some if meta["path"])


def _object(meta: ObjectMeta) -> Object:
    return Object(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])
