"""An archive packed as a BagIt 1.0 bag (RFC 8493), for whoever is to keep it next.

The archive's own tree is the payload; its records (`archive.json`, the runs' journals, summaries
and failures) are tag files. Each file of the payload is read once: what verifies it hands it on to
be linked, copied or streamed. The reference library moves the files it bags, and reads them itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import BinaryIO

from pydantic import BaseModel

from bulkfetch.archive import Tree, files, tree_at
from bulkfetch.archive.identity import IDENTITY_PATH, archive_at
from bulkfetch.bag.contents import Contents
from bulkfetch.bag.directory import in_directory
from bulkfetch.bag.info import Label, bag_info, parse_label
from bulkfetch.bag.streams import STANDARD_OUTPUT, as_tar, as_zip
from bulkfetch.bag.target import Target
from bulkfetch.chain import RUNS, runs_of
from bulkfetch.errors import DestinationError
from bulkfetch.paths import PRIVATE
from bulkfetch.verification import (
    ALGORITHMS,
    Finding,
    FoundError,
    Report,
    Source,
    Taken,
    state_of,
    verify,
)

__all__ = [
    "STANDARD_OUTPUT",
    "BagReport",
    "Label",
    "Opening",
    "as_tar",
    "as_zip",
    "in_directory",
    "make_bag",
    "parse_label",
]

# Beside the payload, since it is no image: what `.bulkfetch` is in the archive.
TAG_DIRECTORY = "bulkfetch"
_DECLARATION = ("BagIt-Version: 1.0", "Tag-File-Character-Encoding: UTF-8")


Opening = Callable[[Tree], AbstractContextManager[Target]]
"""Makes room for a bag, given the archive it is of."""


class BagReport(BaseModel):
    """What became of a bag: `bag` is where it is, None where the archive has findings.

    `tagmanifest_sha256` is the SHA-256 of `tagmanifest-sha256.txt`, which stands for the whole.
    """

    bag: str | None
    seconds: float
    patients: int = 0
    payload_files: int = 0
    payload_bytes: int = 0
    tag_files: int = 0
    tagmanifest_sha256: str | None = None
    verification: Report


def make_bag(
    out: str,
    opening: Opening,
    *,
    info: Sequence[Label] = (),
    processes: int = 1,
    found: Callable[[Finding], None] = lambda _: None,
    looked_at: Callable[[int], object] = lambda _: None,
) -> BagReport:
    """Make a bag of an archive that verifies; of one that does not, none, and `found` says why.

    Args:
        out: the archive's directory, which may be mounted read-only, or its URL. No run begins in a
            directory meanwhile.
        opening: `in_directory`, `as_tar` or `as_zip`, and where; it is given the archive.
        info: what `bag-info.txt` is to say besides what is known.
        processes: how many read side by side; 1 for a bag that is one stream.
        looked_at: told how many files more were checked.

    Raises:
        ConfigurationError: there is no archive, or no bag can be made there in this way.
        DestinationError: a run is at work in the archive, or the bag cannot be written.
    """
    began = time.monotonic()
    with files.named(out):
        tree = tree_at(out)
        identity = archive_at(tree)
    with ExitStack() as stack:
        stack.enter_context(tree.still())
        target = stack.enter_context(opening(tree))
        contents = stack.enter_context(Contents())
        verified = verify(
            out,
            processes=processes,
            found=found,
            looked_at=looked_at,
            take=target.take,
            taken=contents.add_payload,
        )
        if not verified.ok:
            return BagReport(bag=None, seconds=time.monotonic() - began, verification=verified)

        with files.named(tree.name):
            runs = runs_of(tree)
            records = list(_records(tree, runs))
        for path in records:
            contents.add_tag(_put_record(target, tree, path))
        texts: dict[str, Iterable[str]] = {
            "bag-info.txt": bag_info(info, identity, runs, verified, contents),
            **{f"manifest-{a}.txt": contents.manifest(a, is_payload=True) for a in ALGORITHMS},
            "bagit.txt": _DECLARATION,
        }
        for path, lines in texts.items():
            contents.add_tag(_put_lines(target, path, lines))
        # No tag manifest lists another.
        listed = {a: contents.manifest(a, is_payload=False) for a in ALGORITHMS}
        first, *_ = [_put_lines(target, f"tagmanifest-{a}.txt", listed[a]) for a in listed]
        target.commit()
        payload, tags = contents.sums(is_payload=True), contents.sums(is_payload=False)
        return BagReport(
            bag=target.where,
            seconds=time.monotonic() - began,
            patients=contents.patients(),
            payload_files=payload.files,
            payload_bytes=payload.bytes,
            tag_files=tags.files + len(listed),
            tagmanifest_sha256=first.digests[0].hex(),
            verification=verified,
        )


def _records(tree: Tree, runs: Sequence[str]) -> Iterator[str]:
    """Yield what an archive says of itself, but for what is a run's while it goes on."""
    yield IDENTITY_PATH
    for run_id in runs:
        names = (name for name in tree.names(f"{RUNS}/{run_id}") if not name.startswith("."))
        yield from (f"{RUNS}/{run_id}/{name}" for name in names)


def _put_record(target: Target, tree: Tree, path: str) -> Taken:
    with ExitStack() as stack:
        with files.named(f"{tree.name}/{path}"):
            file = stack.enter_context(tree.open(path))
            source = Source(_state_of(file), file.read)
        return _put(target, f"{TAG_DIRECTORY}/{path.removeprefix(f'{PRIVATE}/')}", source)


def _state_of(file: BinaryIO) -> os.stat_result:
    try:
        return os.fstat(file.fileno())
    except OSError:
        # It is no file of this machine.
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return state_of(size, time.time())


def _put_lines(target: Target, path: str, lines: Iterable[str]) -> Taken:
    with ExitStack() as stack:
        # A manifest grows with the images, and its size is told before its first byte.
        with files.named("the temporary directory"):
            file = stack.enter_context(tempfile.TemporaryFile())
            file.writelines(f"{line}\n".encode() for line in lines)
            file.seek(0)
            source = Source(os.fstat(file.fileno()), file.read)
        return _put(target, path, source)


def _put(target: Target, path: str, source: Source) -> Taken:
    try:
        target.put(path, source)
    except FoundError as error:
        raise DestinationError(f"{path} cannot be put into the bag: {error}") from error
    return Taken(path, source.state.st_size, source.digests())
