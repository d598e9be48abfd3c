"""The whole archive: every directory of images, by several processes, and what lies elsewhere."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bulkfetch.archive import Identity, files
from bulkfetch.archive.local import PRIVATE
from bulkfetch.errors import PathRefusedError
from bulkfetch.paths import parse_template
from bulkfetch.verification.findings import Checked, Kind, Sample
from bulkfetch.verification.leaf import check_leaf

# Directories that a process takes at once; and such batches that wait for each process.
_TOGETHER = 64
_AHEAD = 4


def check_images(
    root: Path,
    identity: Identity,
    sample: Sample | None,
    processes: int,
    told: Callable[[Checked], None],
) -> None:
    """Check every image of an archive; `told` gets what is found, some hundred images at a time."""
    with files.descriptor(root) as descriptor, ExitStack() as stack:
        elsewhere = Checked()
        leaves = _leaves(descriptor, "", len(parse_template(identity.path_template)), elsewhere)
        batches = iter(lambda: list(itertools.islice(leaves, _TOGETHER)), [])
        check = partial(_check_batch, str(root), identity, sample)
        if processes == 1:
            for batch in batches:
                told(check(batch))
        else:
            pool = stack.enter_context(ProcessPoolExecutor(processes, _start_method()))
            waiting: deque[Future[Checked]] = deque()
            for batch in batches:
                waiting.append(pool.submit(check, batch))
                if len(waiting) >= _AHEAD * processes:
                    told(waiting.popleft().result())
            for future in waiting:
                told(future.result())
        told(elsewhere)


def _start_method() -> multiprocessing.context.BaseContext:
    # The command has no thread yet, and a copy starts at once; elsewhere the system's default.
    return multiprocessing.get_context("fork" if os.uname().sysname == "Linux" else None)


def _check_batch(
    root: str, identity: Identity, sample: Sample | None, paths: Sequence[str]
) -> Checked:
    whole = Checked()
    with files.descriptor(Path(root)) as descriptor:
        for path in paths:
            whole.add(check_leaf(descriptor, path, identity, sample))
    return whole


def _leaves(directory: int, path: str, depth: int, elsewhere: Checked) -> Iterator[str]:
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
                        yield from _leaves(below, f"{name}/", depth - 1, elsewhere)
                except (OSError, PathRefusedError) as error:
                    elsewhere.find(Kind.unreadable, name, str(error))
