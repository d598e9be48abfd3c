"""Journals as chains: each line has the digest of the one before, and a run names all earlier ones.

So a line that was changed or removed shows in the next one, and a journal that was cut or written
anew shows in the first line of every later run. A digest is the SHA-256 of a whole line with its
end, in hex: `sed -n 5p journal.jsonl | sha256sum` tells the fifth's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

FIRST = "journal.jsonl"
_FINISHED = b'{"event":"run_finished",'
_BLOCK_BYTES = 2**16


def digest(line: bytes) -> str:
    """Return what the line after this one has in `previous`."""
    return hashlib.sha256(line).hexdigest()


def heads_of_runs(runs: Path, *, durable: bool) -> Mapping[str, Mapping[str, str]]:
    """Return the digest of the last line of each run's journals, by run and file name.

    Of a finished run, the first journal is enough: its last line names the heads of the others.
    With `durable`, what a killed run left is on the disk when this returns, since it is going to
    be named. What cannot be read is left out, and named by `bulkfetch verify`.
    """
    found: dict[str, Mapping[str, str]] = {}
    with suppress(FileNotFoundError):
        for run in sorted(runs.iterdir()):
            with suppress(OSError):
                if heads := _heads_of_run(run, durable=durable):
                    found[run.name] = heads
    return found


def heads_of_helpers(run: Path) -> Mapping[str, str]:
    """Return the digests of the last lines of a run's journals but the first."""
    heads: dict[str, str] = {}
    for path in sorted(run.glob("journal-*.jsonl")):
        if line := last_line(path):
            heads[path.name] = digest(line)
    return heads


def _heads_of_run(run: Path, *, durable: bool) -> Mapping[str, str]:
    last = last_line(run / FIRST)
    heads = {FIRST: digest(last)} if last else {}
    if last.startswith(_FINISHED):
        return heads
    for path in run.glob("journal*.jsonl"):
        if durable:
            _flush(path)
    return {**heads, **heads_of_helpers(run)}


def last_line(path: Path) -> bytes:
    """Return the last whole line of a file, with its end; nothing where there is none.

    Raises:
        OSError: the file cannot be read.
    """
    tail = b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at > 0:
            size = min(_BLOCK_BYTES, at)
            at = file.seek(at - size)
            tail = file.read(size) + tail
            whole = tail[: tail.rfind(b"\n") + 1]
            before = whole.rfind(b"\n", 0, -1)
            if whole and (before >= 0 or at == 0):
                return whole[before + 1 :]
    return b""


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
