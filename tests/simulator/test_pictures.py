from __future__ import annotations

import io
import time

import google_crc32c
import pypdf
import pytest
from PIL import Image

from bulkfetch.simulator.crc32c import combine, crc32c
from bulkfetch.simulator.faces import Media, Side, face, stamped


def drawn(media: Media, side: Side = Side.FRONT, pad_to: int | None = None) -> bytes:
    return stamped(face(media, side, 3, pad_to), "synthetic test v1").data


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize(("media", "form"), [(Media.JPEG, "JPEG"), (Media.PNG, "PNG")])
def test_a_card_opens_as_a_colour_picture(media: Media, form: str, side: Side) -> None:
    with Image.open(io.BytesIO(drawn(media, side))) as picture:
        picture.load()
        assert (picture.format, picture.mode, picture.size) == (form, "RGB", (856, 544))
        colours = picture.getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 50


def test_jpeg_and_png_show_the_same_card() -> None:
    with Image.open(io.BytesIO(drawn(Media.JPEG))) as lossy:
        coded = lossy.convert("L").tobytes()
    with Image.open(io.BytesIO(drawn(Media.PNG))) as exact:
        true = exact.convert("L").tobytes()
    errors = [abs(a - b) for a, b in zip(coded, true, strict=True)]
    assert sum(errors) / len(errors) < 1.5
    assert max(errors) < 60


def test_the_two_sides_are_different_pictures() -> None:
    assert drawn(Media.PNG, Side.FRONT) != drawn(Media.PNG, Side.BACK)


@pytest.mark.parametrize("pad_to", [None, 300_000])
def test_a_pdf_opens_and_says_that_it_is_synthetic(pad_to: int | None) -> None:
    document = pypdf.PdfReader(io.BytesIO(drawn(Media.PDF, pad_to=pad_to)), strict=True)
    (page,) = document.pages
    assert "SPECIMEN - SYNTHETIC DATA" in page.extract_text()
    assert [image.image.size for image in page.images if image.image] == [(856, 544)] * 2


@pytest.mark.parametrize("media", list(Media))
@pytest.mark.parametrize("size", [150_000, 200_003, 1_000_000])
def test_padding_brings_an_object_to_its_size_and_it_still_opens(media: Media, size: int) -> None:
    data = drawn(media, pad_to=size)
    assert abs(len(data) - size) <= 16
    if media is not Media.PDF:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()


@pytest.mark.parametrize("media", list(Media))
def test_the_checksum_of_an_object_is_right_though_it_was_joined_from_parts(media: Media) -> None:
    part = stamped(face(media, Side.BACK, 1, 250_000), "synthetic test v2")
    assert part.crc == google_crc32c.value(part.data)


@pytest.mark.parametrize("data", [b"", b"\0", b"123456789", bytes(range(256)) * 9])
def test_crc32c_agrees_with_the_reference(data: bytes) -> None:
    assert crc32c(data) == google_crc32c.value(data)
    for cut in (0, 1, len(data) // 2, len(data)):
        first, second = data[:cut], data[cut:]
        assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(data)


def test_a_further_object_costs_no_drawing() -> None:
    base = face(Media.JPEG, Side.FRONT, 3, None)
    started = time.perf_counter()
    for version in range(100):
        stamped(base, f"synthetic test v{version}")
    assert time.perf_counter() - started < 0.5
