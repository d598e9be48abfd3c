"""Journals as chains: each line has the digest of the one before, and a run names all earlier ones.

So a line that was changed or removed shows in the next one, and a journal that was cut or written
anew shows in the first line of every later run. A digest is the SHA-256 of a whole line with its
end, in hex: `sed -n 5p journal.jsonl | sha256sum` tells the fifth's.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bulkfetch.archive.tree import Tree
from bulkfetch.paths import PRIVATE

RUNS = f"{PRIVATE}/runs"
FIRST = "journal.jsonl"
JOURNAL = re.compile(r"journal(-[0-9]+)?\.jsonl")
FINISHED = b'{"event":"run_finished",'
_BLOCK_BYTES = 2**16
# So many earlier runs are read side by side: where each is some requests, a year of shards is
# thousands.
_AT_ONCE = 32
# A run's first line grows with the runs that it names: by 110 bytes each.
_LONGEST_LINE = 2**26
RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")


def digest(line: bytes) -> str:
    """Return what the line after this one has in `previous`."""
    return hashlib.sha256(line).hexdigest()


def journals_of(tree: Tree, run_id: str) -> list[str]:
    """Return the paths of a run's journals, the first process's first.

    Raises:
        OSError: the run's folder cannot be read.
    """
    names = [name for name in tree.names(f"{RUNS}/{run_id}") if JOURNAL.fullmatch(name)]
    return [f"{RUNS}/{run_id}/{name}" for name in sorted(names, key=lambda name: name != FIRST)]


def runs_of(tree: Tree) -> list[str]:
    """Return the runs of an archive by their IDs, in order.

    Raises:
        OSError: the archive cannot be read.
    """
    with suppress(FileNotFoundError):
        return [name for name in tree.names(RUNS) if RUN_ID.fullmatch(name)]
    return []


def heads_of_runs(tree: Tree, *, durable: bool) -> Mapping[str, Mapping[str, str]]:
    """Return the digest of the last line of each run's journals, by run and file name.

    Of a finished run, the first journal is enough: its last line names the heads of the others.
    With `durable`, what a killed run left is on the disk when this returns, since it is going to
    be named. What cannot be read is left out, and named by `bulkfetch verify`.

    Raises:
        OSError: the archive cannot be read.
    """
    runs = runs_of(tree)

    def heads_of(run_id: str) -> Mapping[str, str]:
        with suppress(OSError):
            return _heads_of_run(tree, run_id, durable=durable)
        return {}

    with ThreadPoolExecutor(_AT_ONCE, "heads") as pool:
        found = zip(runs, pool.map(heads_of, runs), strict=True)
        return {run_id: heads for run_id, heads in found if heads}


def heads_of_helpers(tree: Tree, run_id: str) -> Mapping[str, str]:
    """Return the digests of the last lines of a run's journals but the first.

    Raises:
        OSError: they cannot be read.
    """
    heads: dict[str, str] = {}
    for path in journals_of(tree, run_id):
        name = path.rpartition("/")[2]
        if name != FIRST and (line := last_line(tree, path)):
            heads[name] = digest(line)
    return heads


def _heads_of_run(tree: Tree, run_id: str, *, durable: bool) -> Mapping[str, str]:
    last = last_line(tree, f"{RUNS}/{run_id}/{FIRST}")
    heads = {FIRST: digest(last)} if last else {}
    if last.startswith(FINISHED):
        return heads
    if durable:
        for path in journals_of(tree, run_id):
            tree.flush(path)
    return {**heads, **heads_of_helpers(tree, run_id)}


def last_line(tree: Tree, path: str) -> bytes:
    """Return the last whole line of a file, with its end; nothing where there is none.

    Raises:
        OSError: the file cannot be read.
    """
    blocks: list[bytes] = []
    try:
        file = tree.open(path)
    except FileNotFoundError:
        return b""
    with file:
        at = file.seek(0, os.SEEK_END)
        size, has_end = 0, False
        while at > 0 and size < _LONGEST_LINE:
            block_size = min(_BLOCK_BYTES, at)
            at = file.seek(at - block_size)
            block = file.read(block_size)
            if not has_end:
                # What comes after the last end of a line was cut.
                block = block[: block.rfind(b"\n") + 1]
                has_end = bool(block)
                before = block.rfind(b"\n", 0, -1)
            else:
                before = block.rfind(b"\n")
            blocks.append(block[before + 1 :])
            size += block_size
            if has_end and (before >= 0 or at == 0):
                return b"".join(reversed(blocks))
    return b""
