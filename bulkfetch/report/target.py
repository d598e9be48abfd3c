"""Where a page comes to lie, whole or not at all, and only over an earlier page."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from bulkfetch.archive import Tree, files
from bulkfetch.archive.tree import LocalTree
from bulkfetch.errors import ConfigurationError

# How each page begins, so that it is known again.
BEGINS = '<!doctype html>\n<html lang="en" data-made-by="bulkfetch report">'
_SHEET = re.compile(r"[0-9]{6}\.webp")


class Target:
    """A page's path, and where its sheets of thumbnails lie if not in it.

    Raises:
        ConfigurationError: it would be in the archive, or something else has that name.
        DestinationError: the directory in which it would be is not there.
    """

    def __init__(self, to: str, archive: Tree, *, folder: bool) -> None:
        self.page = Path(to).resolve()
        if isinstance(archive, LocalTree) and self.page.is_relative_to(archive.root):
            raise ConfigurationError(
                f"{to} is in the archive, where a page has no place: name another with --to"
            )
        files.check_parent(self.page, "--to")
        self.folder = self.page.with_name(f"{self.page.stem}-thumbnails") if folder else None
        with files.named(str(self.page)):
            if not _is_replaceable_page(self.page):
                raise ConfigurationError(
                    f"{to} is there, and no page of bulkfetch report: move it away, or name "
                    "another with --to"
                )
            if self.folder and not _is_replaceable_folder(self.folder):
                raise ConfigurationError(
                    f"{self.folder} is there, and holds no thumbnails of bulkfetch report alone: "
                    "move it away, or name another page with --to"
                )

    @contextmanager
    def sheets(self) -> Iterator[Path | None]:
        """Yield a new private directory for the sheets, None where they go into the page.

        `page` gives it its name; if that is never done, nothing of it is left.
        """
        if self.folder is None:
            yield None
            return
        with files.named(str(self.folder)):
            made = Path(tempfile.mkdtemp(prefix=".report-", dir=self.folder.parent))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    @contextmanager
    def whole(self, sheets: Path | None) -> Iterator[IO[bytes]]:
        """Yield a file to write the page to, which gets its name when the block ends, as sheets do.

        Raises:
            DestinationError: it cannot be written.
        """
        with ExitStack() as stack:
            stack.enter_context(files.named(str(self.page)))
            yield stack.enter_context(files.whole_file(self.page))
            if sheets and self.folder:
                _replace(sheets, self.folder)


def _replace(made: Path, folder: Path) -> None:
    """Give a new directory the name of an earlier one, which goes."""
    with suppress(FileNotFoundError):
        # Where the new one was: so it is removed, whatever happens.
        old = made.with_name(f"{made.name}.old")
        folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return
    made.rename(folder)


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


def sheet_name(number: int) -> str:
    """Return the name of a sheet's file, from 0."""
    return f"{number:06}.webp"
