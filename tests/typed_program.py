"""A program that uses the public API, and is checked and never run: here, and against the wheel.

Each `type: ignore` stands where a mistake has to be found: one too many is an error of its own.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import BinaryIO, assert_never, assert_type

from bulkfetch import (
    Archive,
    ArchivedImage,
    ArchivedRun,
    BulkfetchError,
    DamagedError,
    ImageEnded,
    ImageOutcome,
    PatientEnded,
    PatientState,
    Report,
    Settings,
    Sidecar,
    Summary,
    UnlistedSidecar,
    download,
    download_async,
    run,
    verify,
)


async def hear() -> Summary:
    """Take every type that a run tells."""
    async with aclosing(run("patients.csv", Settings(out="archive", retries=3))) as outcomes:
        async for outcome in outcomes:
            if isinstance(outcome, ImageEnded):
                assert_type(outcome.outcome, ImageOutcome)
                assert_type(outcome.error, str | None)
            elif isinstance(outcome, PatientEnded):
                assert_type(outcome.state, PatientState)
            elif isinstance(outcome, Summary):
                return outcome
            else:
                assert_never(outcome)
    return await download_async("patients.csv", Settings(out="archive"))


async def read(damaged: list[DamagedError]) -> list[ArchivedRun]:
    """Take what an archive has."""
    async with Archive("s3://bucket/archive") as archive:
        async for image in archive.images(damaged=damaged.append):
            assert_type(image, ArchivedImage)
            assert_type(image.sidecar, Sidecar)
            assert_type(image.path, str | None)
            assert_type(await archive.read(image), bytes)
            assert_type(await archive.open(image), BinaryIO)
            if isinstance(image.sidecar, UnlistedSidecar):
                print(image.sidecar.unlisted.value)
        return await archive.runs()


def once() -> Report:
    """Do it without an event loop."""
    try:
        print(download("patients.csv", Settings(out="archive")).images.downloaded)
    except BulkfetchError as error:
        print(error.exit_status)
    return verify("archive")


async def mistaken(image: ArchivedImage) -> None:
    """Make a mistake of each kind."""
    Settings(outt="archive")  # type: ignore[call-arg]
    download(Settings(out="archive"), "patients.csv")  # type: ignore[arg-type]
    print(image.sidecar.file.size)  # type: ignore[union-attr]
    image.is_latest = True  # type: ignore[misc]
    for outcome in run("patients.csv", Settings(out="archive")):  # type: ignore[attr-defined]
        print(outcome)
    async with Archive("archive") as archive:
        print((await archive.read(image)).encode())  # type: ignore[attr-defined]
