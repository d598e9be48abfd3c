"""One sheet of thumbnails, made in a process that may die of what strangers uploaded.

A picture that lies about its size, or takes for ever, ends that process and nothing else.
"""

from __future__ import annotations

import io
import resource
import signal
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import pypdfium2
from PIL import Image, ImageOps

from bulkfetch.archive import Tree, tree_at
from bulkfetch.children import end_with_the_first

COLUMNS, ROWS = 8, 6
PER_SHEET = COLUMNS * ROWS
# A card's proportions, 85.6 mm to 54 mm; in pixels.
WIDTH, HEIGHT = 224, 141
MOST_FILE_BYTES = 2**26
_MOST_PIXELS = 100_000_000
_MOST_MEMORY_BYTES = 2**32
_MOST_SECONDS = 20
_QUALITY = 60
# No other decoder of Pillow's is let near them.
_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")


class Job(NamedTuple):
    """An image's path below the archive, without its ending; its file, and the file's bytes."""

    path: str
    file: str
    size: int

    @property
    def file_path(self) -> str:
        """The file's path below the archive."""
        return f"{self.path.rpartition('/')[0]}/{self.file}"


class Sheet(NamedTuple):
    """A WebP picture of cells in rows, and which of them hold a thumbnail."""

    webp: bytes
    made: list[bool]


_tree: Tree


def begin(out: str) -> None:
    """Bound what this process may take, and open the archive."""
    global _tree  # noqa: PLW0603  one archive a process
    end_with_the_first()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    _tree = tree_at(out)


def sheet_of(jobs: Sequence[Job], deadly: Collection[Job] = ()) -> Sheet:
    """Return the thumbnails of some images, but for those that are known to be `deadly`."""
    rows = -(-len(jobs) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * WIDTH, rows * HEIGHT))
    made = []
    for number, job in enumerate(jobs):
        thumbnail = None if job in deadly else thumbnail_of(job)
        made.append(thumbnail is not None)
        if thumbnail:
            left = number % COLUMNS * WIDTH + (WIDTH - thumbnail.width) // 2
            top = number // COLUMNS * HEIGHT + (HEIGHT - thumbnail.height) // 2
            # Its pixels alone: no EXIF, no text, no profile.
            sheet.paste(thumbnail, (left, top))
    webp = io.BytesIO()
    sheet.save(webp, "WEBP", quality=_QUALITY, method=2)
    return Sheet(webp.getvalue(), made)


def survives(job: Job) -> bool:
    """Return True, if this process still is there to do so."""
    thumbnail_of(job)
    return True


def thumbnail_of(job: Job) -> Image.Image | None:
    """Return a picture that fits into a cell; None where there can be none.

    What takes too long ends the process: no other end is sure to come, in a library's own code.
    """
    if job.size > MOST_FILE_BYTES:
        return None
    signal.alarm(_MOST_SECONDS)
    try:
        with _tree.open(job.file_path) as file:
            data = file.read(MOST_FILE_BYTES)
        shown = _first_page(data) if job.file.endswith(".pdf") else _picture(data)
        shown.thumbnail((WIDTH, HEIGHT), reducing_gap=2.0)
    except Exception:  # noqa: BLE001  decoders of what strangers sent raise whatever they like
        return None
    finally:
        signal.alarm(0)
    return shown


def _picture(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    # A JPEG is decoded to no more pixels than it takes.
    picture.draft("RGB", (2 * WIDTH, 2 * HEIGHT))
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        # Of 16 bits, which `convert` would cut off above 255: all white.
        upright = upright.convert("I").point(lambda shade: shade / 256).convert("L")
    return upright.convert("RGBA")


def _first_page(data: bytes) -> Image.Image:
    with pypdfium2.PdfDocument(data) as document:
        page = document[0]
        width, height = page.get_size()
        scale = 2 * min(WIDTH / width, HEIGHT / height)
        shown: Image.Image = page.render(scale=scale).to_pil().convert("RGBA")
        return shown
