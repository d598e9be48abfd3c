"""The whole archive in an object store: listed once, and read by many threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from bulkfetch.archive import Identity
from bulkfetch.archive.identity import IDENTITY_PATH
from bulkfetch.errors import DestinationError
from bulkfetch.paths import PRIVATE, parse_template
from bulkfetch.stores.store import Object, Store
from bulkfetch.verification.beside import check_name
from bulkfetch.verification.directory import StoreDirectory
from bulkfetch.verification.findings import Checked, Kind, Sample
from bulkfetch.verification.leaf import check_directory
from bulkfetch.verification.source import Take

# Directories that a thread takes at once; and such batches that wait for each thread.
_TOGETHER = 8
_AHEAD = 4

_Leaf = tuple[str, dict[str, Object]]


def check_bucket(
    store: Store,
    threads: int,
    identity: Identity,
    sample: Sample | None,
    *,
    told: Callable[[Checked], None],
    take: Take | None,
) -> None:
    """Check every image of an archive; `told` gets what is found, some images at a time.

    Raises:
        StoreError: it cannot be listed.
        DestinationError: it is not listed in order, or not whole.
    """
    elsewhere = Checked()
    leaves = leaves_of(store, len(parse_template(identity.path_template)), elsewhere)
    batches = iter(lambda: list(itertools.islice(leaves, _TOGETHER)), [])
    check = partial(_check_batch, store, identity, sample, take)
    with ThreadPoolExecutor(threads, "verify") as pool:
        waiting: deque[Future[Checked]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(check, batch))
                if len(waiting) >= _AHEAD * threads:
                    told(waiting.popleft().result())
            while waiting:
                told(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
    told(elsewhere)


def _check_batch(
    store: Store,
    identity: Identity,
    sample: Sample | None,
    take: Take | None,
    leaves: Sequence[_Leaf],
) -> Checked:
    checked = Checked()
    for path, found in leaves:
        check_directory(StoreDirectory(store, found), path, identity, sample, checked, take=take)
    return checked


def leaves_of(store: Store, depth: int, elsewhere: Checked) -> Iterator[_Leaf]:
    """Yield the directories of images, each with its objects; note what else there is."""
    path, found = "", dict[str, Object]()
    is_listing = False
    for listed in store.objects():
        is_listing = is_listing or listed.path == IDENTITY_PATH
        *above, _ = parts = listed.path.split("/")
        if parts[0] == PRIVATE:
            check_name(listed.path, elsewhere)
        elif len(above) < depth:
            elsewhere.find(Kind.stray, listed.path, "nothing of an archive lies here")
        else:
            directory = "/".join(parts[:depth])
            if directory != path:
                if f"{directory}/" < f"{path}/":
                    # Half a directory would be taken for a whole one.
                    raise DestinationError(
                        f"{store.url} is not listed in the order of names, as S3's directory "
                        "buckets are not: copy it to another bucket, or to a disk, to verify it"
                    )
                if found:
                    yield path, found
                path, found = directory, {}
            found["/".join(parts[depth:])] = listed
    if found:
        yield path, found
    if not is_listing:
        # A page of somebody else's with status 200 is read as an empty listing.
        raise DestinationError(
            f"{store.url} is not listed whole: {IDENTITY_PATH} is there, and in no list; try again"
        )
