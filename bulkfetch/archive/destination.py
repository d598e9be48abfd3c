"""Which kind of archive a destination is: a directory of this machine, or an object store's URL."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bulkfetch.archive import files
from bulkfetch.archive.base import Again, Identity, OpenArchive, Writer
from bulkfetch.archive.local import LocalArchive
from bulkfetch.archive.tree import LocalTree, Tree
from bulkfetch.errors import DestinationError
from bulkfetch.models import Shard
from bulkfetch.stores import READ_RETRIES, file_path, is_url, open_store

if TYPE_CHECKING:
    from bulkfetch.archive.store import StoreArchive


def tree_at(out: str) -> Tree:
    """Return what is in an archive, to be read.

    Raises:
        ConfigurationError: it is no URL of a store that is known.
    """
    out = file_path(out)
    if not is_url(out):
        return LocalTree(Path(os.path.realpath(out)))
    # First, since it says which extra is missing.
    store = open_store(out, retries=READ_RETRIES)
    from bulkfetch.archive.store_tree import StoreTree  # noqa: PLC0415  an extra

    return StoreTree(store)


class Destination:
    """Where a run writes.

    Args:
        out: a path, or a URL: `file://`, or that of an object store.
    """

    def __init__(self, out: str) -> None:
        self._out = file_path(out)

    def check(self, identity: Identity) -> None:
        """Say what is wrong with it, creating nothing.

        Raises:
            ConfigurationError: it is no URL of a store that is known.
            DestinationError: it cannot be written, as far as can be told.
            ArchiveMismatchError: it is another account's archive.
        """
        if not is_url(self._out):
            LocalArchive.check(self._out, identity)
            return
        # First, since it says which extra is missing.
        open_store(self._out)
        _store_archive().check(self._out, identity)

    @asynccontextmanager
    async def open(
        self,
        run_id: str,
        identity: Identity,
        again: Again,
        *,
        shard: Shard | None,
        durable: bool,
        is_joined: bool,
    ) -> AsyncIterator[OpenArchive]:
        """Make or open the archive, and hold it until the context ends.

        `again` retries what is asked of a store, `durable` waits for a disk, and `is_joined` says
        that other processes are going to `join`. Where another run may hold it, that takes a
        minute; cancelled meanwhile, it ends at once.

        Raises:
            DestinationError: it cannot be written, or another run holds it.
            ArchiveMismatchError: it is another account's archive.
        """
        called_off = threading.Event()

        def held() -> AbstractContextManager[OpenArchive]:
            if is_url(self._out):
                return _store_archive().open(
                    self._out, run_id, identity, shard=shard, again=again, called_off=called_off
                )
            return LocalArchive.open(
                self._out, run_id, identity, shard=shard, durable=durable, is_joined=is_joined
            )

        with ExitStack() as stack:
            opening = asyncio.get_running_loop().run_in_executor(None, stack.enter_context, held())
            try:
                archive = await asyncio.shield(opening)
            except asyncio.CancelledError:
                called_off.set()
                with suppress(DestinationError):
                    await files.to_its_end(opening)
                raise
            yield archive

    def join(
        self,
        run_id: str,
        identity: Identity,
        first: Writer,
        number: int,
        again: Again,
        *,
        durable: bool,
    ) -> AbstractContextManager[OpenArchive]:
        """Open the archive that the first process of this run holds, as its `number`-th.

        Raises:
            DestinationError: it cannot be written.
            ArchiveMismatchError: it is another account's archive.
        """
        if not is_url(self._out):
            return LocalArchive.join(self._out, run_id, identity, first, number, durable=durable)
        return _store_archive().join(self._out, run_id, identity, first, number, again=again)

    def read_only(self, identity: Identity, again: Again) -> AbstractContextManager[OpenArchive]:
        """Open the archive to look into it; there need not be one.

        Raises:
            ArchiveMismatchError: it is another account's archive.
        """
        if not is_url(self._out):
            return LocalArchive.read_only(self._out, identity)
        return _store_archive().read_only(self._out, identity, again)


def _store_archive() -> type[StoreArchive]:
    from bulkfetch.archive.store import StoreArchive  # noqa: PLC0415  an extra

    return StoreArchive
