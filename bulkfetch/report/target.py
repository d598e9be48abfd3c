"""Where a page comes to lie, whole or not at all, and only over an earlier page."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

from bulkfetch.archive import Tree, files
from bulkfetch.archive.tree import LocalTree
from bulkfetch.errors import ConfigurationError

# How each page begins, so that it is known again.
BEGINS = '<!doctype html>\n<html lang="en" data-made-by="bulkfetch report">'
_SHEET = re.compile(r"[0-9a-f]{8}-[0-9]{6}\.webp")


class Target:
    """A page's path, and where its sheets of thumbnails lie if not in it.

    Raises:
        ConfigurationError: it would be in the archive, or something else has that name.
        DestinationError: the directory in which it would be is not there.
    """

    def __init__(self, to: str, archive: Tree, *, folder: bool) -> None:
        with files.named(to):
            self.page = Path(os.path.realpath(to))
        if isinstance(archive, LocalTree) and self.page.is_relative_to(archive.root):
            raise ConfigurationError(
                f"{to} is in the archive, where a page has no place: name another with --to"
            )
        files.check_parent(self.page, "--to")
        with files.named(str(self.page)):
            if not _is_replaceable_page(self.page):
                raise ConfigurationError(
                    f"{self.page} is there, and no page of bulkfetch report: move it away, or name "
                    "another with --to"
                )
            name = f"{self.page.name}-thumbnails"
            self.folder = self.page.with_name(name) if folder else None
            if self.folder and not _is_replaceable_folder(self.folder):
                raise ConfigurationError(
                    f"{self.folder} is there, and holds no thumbnails of bulkfetch report alone: "
                    "move it away, or name another page with --to"
                )
        # No page ever shows another one's pictures, not even one that is open while it is replaced.
        self._prefix = f"{secrets.token_hex(4)}-"

    @property
    def way_to_sheets(self) -> str | None:
        """How a sheet's URL begins, as the page has it; None where they go into the page."""
        if self.folder is None:
            return None
        return quote(os.fsencode(f"{self.folder.name}/{self._prefix}"))

    def add_sheet(self, number: int, webp: bytes) -> bool:
        """Write a sheet of thumbnails into the directory, beside those of an earlier page.

        Returns False where sheets go into the page.

        Raises:
            DestinationError: it cannot be written.
        """
        if self.folder is None:
            return False
        with files.named(str(self.folder)):
            self.folder.mkdir(mode=files.DIRECTORY_MODE, exist_ok=True)
            self.folder.chmod(files.DIRECTORY_MODE)
            sheet = self.folder / f"{self._prefix}{number:06}.webp"
            descriptor = os.open(sheet, os.O_WRONLY | os.O_CREAT | os.O_EXCL, files.FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(webp)
        return True

    @contextmanager
    def whole(self) -> Iterator[IO[bytes]]:
        """Yield a file to write the page to, which gets its name when the block ends.

        Whatever happens, the page that has it then keeps its sheets; those of the other one go.

        Raises:
            DestinationError: it cannot be written, or another process is at it.
        """
        with (
            ExitStack() as at_last,
            files.named(str(self.page)),
            files.whole_file(self.page) as file,
        ):
            at_last.callback(self._remove_sheets, os.fstat(file.fileno()))
            yield file

    def _remove_sheets(self, made: os.stat_result) -> None:
        if self.folder is None:
            return
        with suppress(OSError):
            is_there = self.page.exists() and os.path.samestat(made, self.page.stat())
            for sheet in self.folder.iterdir():
                is_ours = sheet.name.startswith(self._prefix)
                if is_ours != is_there and _SHEET.fullmatch(sheet.name):
                    sheet.unlink()
            # Where nothing is left in it.
            self.folder.rmdir()


def _is_replaceable_page(page: Path) -> bool:
    if not os.path.lexists(page):
        return True
    if page.is_symlink() or not page.is_file():
        return False
    return files.read(page, at_most=1000).startswith(BEGINS.encode())


def _is_replaceable_folder(folder: Path) -> bool:
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(_SHEET.fullmatch(found.name) for found in folder.iterdir())
