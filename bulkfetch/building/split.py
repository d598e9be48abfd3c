"""One manifest made into several, so that as many jobs can have their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel

from bulkfetch.archive import files
from bulkfetch.errors import ConfigurationError, DestinationError
from bulkfetch.manifest import STANDARD_INPUT, Manifest, ManifestFormat
from bulkfetch.manifest.forms import COVERAGE_ID, PATIENT_ID
from bulkfetch.manifest.writer import GZIP_ENDING, Cells, Writer, form_of, writing
from bulkfetch.models import ManifestRow, Shard

SHARES_AT_MOST = 256
_ROWS_AT_ONCE = 100


class Split(BaseModel):
    """What became of a manifest's rows.

    `rows` is the sum of `shares`, which are by file; `duplicates` were left out.
    """

    rows: int
    duplicates: int
    shares: dict[str, int]


def split_manifest(
    source: str | os.PathLike[str],
    shares: int,
    to: Path,
    given: ManifestFormat | None = None,
) -> Split:
    """Write each row of a manifest into one of several, as `download --shard` tells them apart.

    They are `to`/`<stem>-<I>-of-<N>.<ending>`, in the form of the source and with its columns but
    for `bulkfetch_*` ones; Parquet has strings alone. A share may be without rows. None has its
    name before all rows are written.

    Raises:
        ConfigurationError: the number is out of bounds, a file of such a name is there, or the
            manifest is a bad one (`ManifestError`).
        DestinationError: the directory is none, or cannot be written.
    """
    if not 2 <= shares <= SHARES_AT_MOST:
        raise ConfigurationError(f"--shards must be from 2 to {SHARES_AT_MOST}, not {shares}")
    source = os.fspath(source)
    form = form_of(source, given or (ManifestFormat.csv if source == STANDARD_INPUT else None))
    with files.named(str(to)):
        nearest = files.nearest(to)
        if not nearest.is_dir():
            raise DestinationError(f"{nearest} is a file: name a directory with --to")
    paths = _paths(source, form, shares, to)
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigurationError(f"{path} is there already: name another --to, or move it away")
    with Manifest(source, form if source == STANDARD_INPUT else given) as manifest:
        facts = manifest.check()
        columns = [*_id_columns(manifest), *facts.columns]
        with files.named(str(to)), ExitStack() as stack:
            files.make_directory(to)
            written = [_Share(stack.enter_context(_share(path, form, columns))) for path in paths]
            for row in manifest.rows():
                of = Shard.share_of(row.patient_id, row.coverage_id, shares)
                written[of - 1].add(row)
            for share in written:
                share.flush()
    return Split(
        rows=facts.distinct,
        duplicates=facts.duplicates,
        shares={str(path): share.rows for path, share in zip(paths, written, strict=True)},
    )


class _Share:
    """One of the manifests, written some rows at a time."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._waiting: list[Cells] = []
        self.rows = 0

    def add(self, row: ManifestRow) -> None:
        ids = {PATIENT_ID: row.patient_id, COVERAGE_ID: row.coverage_id}
        self._waiting.append(ids | row.extra)
        self.rows += 1
        if len(self._waiting) == _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        self._writer.write(self._waiting)
        self._waiting.clear()


@contextmanager
def _share(path: Path, form: ManifestFormat, columns: Sequence[str]) -> Iterator[Writer]:
    compress = path.name.endswith(GZIP_ENDING)
    with (
        files.whole_file(path) as file,
        writing(file, form, columns, compress=compress) as writer,
    ):
        yield writer


def _id_columns(manifest: Manifest) -> list[str]:
    """The columns that hold IDs in this manifest."""
    return [
        name
        for name, place in ((PATIENT_ID, 0), (COVERAGE_ID, 1))
        if any(row.key[place] for row in manifest.rows())
    ]


def _paths(source: str, form: ManifestFormat, shares: int, to: Path) -> list[Path]:
    name = "manifest" if source == STANDARD_INPUT else Path(source).name
    gzipped = name.lower().endswith(GZIP_ENDING)
    name = name[: -len(GZIP_ENDING)] if gzipped else name
    ending = f".{form}{GZIP_ENDING if gzipped else ''}"
    return [to / f"{Path(name).stem}-{n}-of-{shares}{ending}" for n in range(1, shares + 1)]
