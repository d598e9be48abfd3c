"""The whole archive in an object store: listed once, and read by many threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from bulkfetch.ahead import in_order, threads_of
from bulkfetch.archive import Identity
from bulkfetch.archive.store_tree import Leaf, leaves_of
from bulkfetch.paths import PRIVATE, parse_template
from bulkfetch.stores.store import Store
from bulkfetch.verification.beside import check_name
from bulkfetch.verification.directory import StoreDirectory
from bulkfetch.verification.findings import Checked, Kind, Sample
from bulkfetch.verification.leaf import check_directory
from bulkfetch.verification.source import Take

# Directories that a thread takes at once; and such batches that wait for each thread.
_TOGETHER = 8
_AHEAD = 4


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
    leaves = leaves_of(
        store, len(parse_template(identity.path_template)), partial(check_elsewhere, elsewhere)
    )
    batches = iter(lambda: list(itertools.islice(leaves, _TOGETHER)), [])
    check = partial(_check_batch, store, identity, sample, take)
    with threads_of(threads, "verify") as pool:
        for checked in in_order(pool, check, batches, _AHEAD * threads):
            told(checked)
    told(elsewhere)


def _check_batch(
    store: Store,
    identity: Identity,
    sample: Sample | None,
    take: Take | None,
    leaves: Sequence[Leaf],
) -> Checked:
    checked = Checked()
    for path, found in leaves:
        check_directory(StoreDirectory(store, found), path, identity, sample, checked, take=take)
    return checked


def check_elsewhere(checked: Checked, path: str) -> None:
    """Note what lies in no directory of images."""
    if path.partition("/")[0] == PRIVATE:
        check_name(path, checked)
    else:
        checked.find(Kind.stray, path, "nothing of an archive lies here")
