"""What `bulkfetch download` does, for a Python program."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

from bulkfetch.manifest import Manifest
from bulkfetch.models import Summary
from bulkfetch.outcomes import ImageEnded, Outcomes, PatientEnded
from bulkfetch.pipeline import Run
from bulkfetch.settings import Settings


async def run(
    manifest: str | os.PathLike[str], settings: Settings
) -> AsyncGenerator[ImageEnded | PatientEnded | Summary]:
    """Fetch every image of the patients in a manifest, and yield how each ends; last the sums.

    A patient's images come together, when it ends, and then the patient; each row that the run
    came to is yielded once, in the order in which they end. So the sums are those of what was
    yielded, but for patients that were not reached. Some hundred outcomes wait to be read, and a
    loop that is slower than the run slows it.

    Leaving the loop ends the run as Ctrl-C does: nothing new is begun, what is in flight has five
    seconds to end, what was finished is whole, and the next run goes on from there. Being cancelled
    does the same, and being cancelled once more ends it at once. After a plain `break` that
    happens behind the program's back; with `aclosing` it has happened where the context ends:

        async with aclosing(run("patients.csv", Settings(out="archive"))) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, ImageEnded) and outcome.outcome == "failed":
                    break

    Args:
        manifest: a path, or `-` for standard input.
        settings: as on the command line. Credentials and whatever is left open come from
            `BULKFETCH_*` in the environment.

    Raises:
        ConfigurationError: settings or manifest are wrong; nothing was fetched.
        CredentialsError: the API refused the credentials.
        UnreachableError: the API did not answer the first question; nothing was fetched.
        DestinationError: the archive cannot be written, or another run holds it.
        EngineError: the Ray cluster does not work.
    """
    # A pipe's or a bucket's manifest is copied first, which may take long.
    with await asyncio.to_thread(
        Manifest,
        manifest,
        settings.manifest_format,
        allow_empty=settings.allow_empty,
        shard=settings.shard,
    ) as opened:
        facts = await asyncio.to_thread(opened.check)
        outcomes = Outcomes()
        job = Run(opened, facts, settings, outcomes=outcomes)
        task = asyncio.create_task(job())
        task.add_done_callback(lambda _: outcomes.end())
        try:
            async for outcome in outcomes:
                yield outcome
        finally:
            outcomes.end()
            await _end(job, task)
    if job.fatal is not None:
        raise job.fatal
    yield task.result()


async def _end(job: Run, task: asyncio.Task[Summary]) -> None:
    """Wait for a run, ending it in order if it is at work, and at once if this is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        job.interrupt()
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    if not task.cancelled():
        task.result()


async def download_async(manifest: str | os.PathLike[str], settings: Settings) -> Summary:
    """Fetch every image of the patients in a manifest, and return the run's sums.

    A patient that failed is no exception: it is counted, and named in the archive's `failures.csv`.
    Cancelling is safe, and raises the same as does `run`.
    """
    async with aclosing(run(manifest, settings)) as outcomes:
        async for outcome in outcomes:
            if isinstance(outcome, Summary):
                return outcome
    raise AssertionError("the last outcome is the sums")


def download(manifest: str | os.PathLike[str], settings: Settings) -> Summary:
    """Fetch every image of the patients in a manifest, and return the run's sums.

    Credentials and whatever `settings` leaves open come from `BULKFETCH_*` in the environment, as
    on the command line.

    >>> from bulkfetch import Settings, download
    >>> summary = download("patients.csv", Settings(out="archive"))
    >>> summary.patients.failed, summary.images.failed
    (0, 0)
    >>> summary.exit_code
    0

    Raises the same as `download_async`, which is its twin inside an event loop.
    """
    return asyncio.run(download_async(manifest, settings))
