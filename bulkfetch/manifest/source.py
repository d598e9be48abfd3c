"""Where a manifest's bytes come from: a file, a pipe or standard input; plain or gzip; as lines."""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import io
import os
import stat
import sys
import tempfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import IO

from bulkfetch.errors import ManifestError
from bulkfetch.stores import blocks_of, file_path, is_url

STANDARD_INPUT = "-"
MAX_ROW_BYTES = 16 * 1024 * 1024  # of one line, and of one row with all its lines
BUFFER_BYTES = 64 * 1024
HEAD_BYTES = 4096  # what is looked at to tell text from something else
GZIP_MAGIC = b"\x1f\x8b"

# What is mistaken for a text manifest, by its first bytes, and what to do about it.
NOT_TEXT = {
    GZIP_MAGIC: "is compressed with gzip: let its name end in .gz",
    BOM_UTF16_LE: "is UTF-16 text: save it as UTF-8",
    BOM_UTF16_BE: "is UTF-16 text: save it as UTF-8",
    b"PK\x03\x04": "is an Excel workbook or another ZIP archive: export it as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook: export it as CSV",
    b"PAR1\x15": "is Parquet: let its name end in .parquet, or --manifest-format parquet",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: decompress it, or compress it with gzip",
    b"\xfd7zXZ\x00": "is compressed with xz: decompress it, or compress it with gzip",
    b"%PDF-": "is a PDF: export the table as CSV",
    b"\xff\xd8\xff": "is a JPEG image: name a manifest instead",
    b"\x89PNG": "is a PNG image: name a manifest instead",
}
CONTROLS = bytes({*range(32), 127} - set(b"\t\n\r\f"))


class ManifestFormat(StrEnum):
    """The forms of a manifest, each named as its ending."""

    csv = "csv"
    tsv = "tsv"
    txt = "txt"
    jsonl = "jsonl"
    parquet = "parquet"


class StopReadingError(Exception):
    """The manifest cannot be read beyond `line`; `what` says why, and what to do."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(line, what)
        self.line = line
        self.what = what


class Source:
    """A manifest's file: opened here once, and read from the start as often as needed.

    Attributes:
        name: for messages.
        form: as given, or told by the ending.
        file: the open file, which can seek.

    Raises:
        ManifestError: the form is not known, or the file cannot be opened.
    """

    def __init__(self, source: str | os.PathLike[str], given: ManifestFormat | None) -> None:
        path = os.fspath(source)
        is_standard_input = path == STANDARD_INPUT
        self.name = "<standard input>" if is_standard_input else path
        default = ManifestFormat.csv if is_standard_input else None
        self.form = given or default or told_form(path)
        with _opening(self.name), ExitStack() as undo:
            self.file = _standard_input() if is_standard_input else _open(path)
            undo.callback(self.file.close)
            if is_standard_input or given is not None:
                self._gzip = self.file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            else:
                self._gzip = path.lower().endswith(".gz")
            self._state = self._stat()
            undo.pop_all()

    def lines(self) -> Lines:
        """The text from the start, decompressed.

        Raises:
            ManifestError: it is no text.
            StopReadingError: the first bytes cannot be read.
        """
        self.file.seek(0)
        if self._gzip:
            lines = Lines(io.BufferedReader(gzip.GzipFile(fileobj=self.file), BUFFER_BYTES))
        else:
            lines = Lines(self.file)
        if what := _not_text(lines.head):
            raise ManifestError(f"{self.name} {what}")
        return lines

    def sha256(self) -> str:
        """The SHA-256 of the bytes as they are, compressed or not, in hex."""
        self.file.seek(0)
        with _opening(self.name):
            # Its type has no `readinto`, which every such file has.
            return hashlib.file_digest(self.file, "sha256").hexdigest()  # type: ignore[arg-type]

    def raise_if_changed(self) -> None:
        """Raises ManifestError if the open file's size or time of change is another than once."""
        if self._stat() != self._state:
            raise self.changed()

    def changed(self, what: str = "") -> ManifestError:
        """The error for a manifest whose second reading differs from the first."""
        seen = f" ({what})" if what else ""
        return ManifestError(
            f"{self.name}: the manifest changed while it was read{seen}: run again when it is "
            "complete, on a copy if need be"
        )

    def close(self) -> None:
        """Closes the file; a temporary one is gone."""
        self.file.close()

    def _stat(self) -> tuple[int, int]:
        facts = os.fstat(self.file.fileno())
        return facts.st_size, facts.st_mtime_ns


class Lines:
    """The lines of a text, decoded from UTF-8 without BOM; iterated once.

    A line that is not UTF-8, or holds NUL, is yielded with replacements, so that the rows after it
    are still found; `end_row` says what is wrong with it.

    Attributes:
        head: the first bytes, before anything is consumed.
        number: of the line last yielded, from 1.
        row_bytes: read since the last `end_row`; more than 16 MiB raise StopReadingError.
        ended: whether the end was reached.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._fault: str | None = None
        self.number = 0
        self.row_bytes = 0
        self.ended = False
        with self._reading():
            self.head = stream.read(HEAD_BYTES)
            stream.seek(len(BOM_UTF8) if self.head.startswith(BOM_UTF8) else 0)

    def __iter__(self) -> Iterator[str]:
        readline = self._stream.readline
        with self._reading():
            while line := readline(MAX_ROW_BYTES + 1):
                self.number += 1
                self.row_bytes += len(line)
                if self.row_bytes > MAX_ROW_BYTES:
                    raise StopReadingError(
                        self.number,
                        f"the row is longer than {MAX_ROW_BYTES:,} bytes: this is no manifest, or "
                        "a quote is never closed",
                    )
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    text = line.decode(errors="replace")
                    self._fault = (
                        f"is not UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x}): "
                        "save the file as UTF-8"
                    )
                if "\0" in text:
                    self._fault = "holds a NUL byte: remove it"
                yield text
        self.ended = True

    def end_row(self) -> str | None:
        """To be called after each row; returns what made one of its lines unfit, or None."""
        fault = self._fault
        self._fault = None
        self.row_bytes = 0
        return fault

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            what = "the gzip data ends too early: copy the file again"
            raise StopReadingError(self.number + 1, what) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            what = f"the gzip data is damaged, or is no gzip ({error}): copy the file again"
            raise StopReadingError(self.number + 1, what) from error
        except OSError as error:
            what = f"reading failed ({error.strerror}): see to the disk, and run again"
            raise StopReadingError(self.number + 1, what) from error


def told_form(path: str) -> ManifestFormat:
    """The form that the ending tells.

    Raises:
        ManifestError: it tells none.
    """
    name = path.lower()
    for form in ManifestFormat:
        if name.removesuffix(".gz").endswith(f".{form}"):
            if form is ManifestFormat.parquet and name.endswith(".gz"):
                raise ManifestError(f"{path}: Parquet is not read from .gz: decompress it first")
            return form
    raise ManifestError(
        f"{path}: the ending tells no form of manifest: use .csv, .tsv, .txt or .jsonl (each also "
        "with .gz) or .parquet, or give --manifest-format"
    )


def _open(path: str) -> IO[bytes]:
    """The file itself, or a copy of what a pipe or an object store holds."""
    path = file_path(path)
    if is_url(path):
        return _copied(blocks_of(path))
    if Path(path).is_dir():  # before opening it, which not every system refuses
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    file = open(path, "rb", buffering=BUFFER_BYTES)  # noqa: PTH123, SIM115  # closed by Source
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:
        return _copied(_blocks(file))


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise OSError(errno.EBADF, "it is closed")
    return _copied(_blocks(sys.stdin.buffer))


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(partial(stream.read, BUFFER_BYTES), b"")


def _copied(blocks: Iterable[bytes]) -> IO[bytes]:
    """A private temporary file, already unlinked, with all the bytes that there are."""
    file: IO[bytes] = tempfile.TemporaryFile(buffering=BUFFER_BYTES)  # noqa: SIM115  # by Source
    try:
        file.writelines(blocks)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def _opening(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ManifestError(f"{name}: there is no such file: correct the path") from error
    except IsADirectoryError as error:
        raise ManifestError(f"{name} is a directory: name the file in it") from error
    except PermissionError as error:
        raise ManifestError(f"{name} may not be read: get permission to read it") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ManifestError(
                f"{name} cannot be kept in the temporary directory ({error.strerror}): make room "
                "there, or name another by TMPDIR"
            ) from error
        raise ManifestError(f"{name} cannot be read ({error.strerror}): see to it") from error
    except ValueError as error:  # a path with NUL in it
        raise ManifestError(f"{name!a} is no path ({error}): correct it") from error


def _not_text(head: bytes) -> str | None:
    """What the first bytes are instead of text, and what to do; None if they may be text."""
    for magic, what in NOT_TEXT.items():
        if head.startswith(magic):
            return what
    controls = len(head) - len(head.translate(None, CONTROLS))
    # Random bytes have 11 %, bad cells a few; and short cells may have many, but are UTF-8.
    if controls > 8 and controls * 20 > len(head) and not _is_utf_8(head):
        return "is not text: give a manifest in UTF-8"
    return None


def _is_utf_8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
