"""The whole archive: every directory of images, by several processes, and what lies elsewhere."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bulkfetch.ahead import in_order
from bulkfetch.archive import Identity, files
from bulkfetch.children import end_with_the_first, ended_at_once
from bulkfetch.errors import PathRefusedError, ProcessDiedError
from bulkfetch.paths import PRIVATE, parse_template
from bulkfetch.verification.beside import check_beside
from bulkfetch.verification.exposure import check_exposure
from bulkfetch.verification.findings import Checked, Kind, Sample
from bulkfetch.verification.leaf import check_leaf
from bulkfetch.verification.source import Take

# Directories that a process takes at once; and such batches that wait for each process.
_TOGETHER = 64
_AHEAD = 4


def check_disk(
    root: Path,
    processes: int,
    identity: Identity,
    sample: Sample | None,
    *,
    told: Callable[[Checked], None],
    take: Take | None,
) -> None:
    """Check every image of an archive and what lies beside them, some hundred images at a time.

    `take` is called in whichever process reads a file, and can be sent to one.
    """
    with files.descriptor(root) as descriptor, ExitStack() as stack:
        elsewhere = Checked()
        leaves = leaves_of(descriptor, "", len(parse_template(identity.path_template)), elsewhere)
        batches = iter(lambda: list(itertools.islice(leaves, _TOGETHER)), [])
        check = partial(_check_batch, str(root), identity, sample, take)
        if processes == 1:
            for batch in batches:
                told(check(batch))
        else:
            stack.enter_context(_whole_pool())
            pool = stack.enter_context(
                ProcessPoolExecutor(processes, _start_method(), end_with_the_first)
            )
            stack.enter_context(ended_at_once())
            for checked in in_order(pool, check, batches, _AHEAD * processes):
                told(checked)
        told(elsewhere)
        told(check_beside(descriptor))
        told(check_exposure(descriptor))


def _start_method() -> multiprocessing.context.BaseContext:
    # The command has no thread yet, and a copy starts at once; elsewhere the system's default.
    return multiprocessing.get_context("fork" if os.uname().sysname == "Linux" else None)


@contextmanager
def _whole_pool() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise ProcessDiedError(
            "a process that was reading the archive was killed: run the same command again, with "
            "fewer --processes if memory is short"
        ) from None


def _check_batch(
    root: str, identity: Identity, sample: Sample | None, take: Take | None, paths: Sequence[str]
) -> Checked:
    whole = Checked()
    with files.descriptor(Path(root)) as descriptor:
        for path in paths:
            whole.add(check_leaf(descriptor, path, identity, sample, take))
    return whole


def leaves_of(directory: int, path: str, depth: int, elsewhere: Checked) -> Iterator[str]:
    """Yield the directories of images, by their paths; note what else there is above them."""
    with os.scandir(directory) as entries:
        for entry in entries:
            name = f"{path}{entry.name}"
            if not path and entry.name == PRIVATE:
                continue
            if entry.is_symlink():
                elsewhere.find(Kind.link, name, "a symbolic link")
            elif not entry.is_dir(follow_symlinks=False):
                elsewhere.find(Kind.stray, name, "nothing of an archive lies here")
            elif depth == 1:
                yield name
            else:
                try:
                    with files.subdirectory(entry.name, directory) as below:
                        yield from leaves_of(below, f"{name}/", depth - 1, elsewhere)
                except (OSError, PathRefusedError) as error:
                    elsewhere.find(Kind.unreadable, name, str(error))
