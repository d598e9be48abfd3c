"""What `bulkfetch download` does, for a Python program."""

from __future__ import annotations

import asyncio
import os

from bulkfetch.manifest import Manifest
from bulkfetch.models import Summary
from bulkfetch.pipeline import Run
from bulkfetch.settings import Settings


async def download_async(manifest: str | os.PathLike[str], settings: Settings) -> Summary:
    """Fetch every image of the patients in a manifest, and return the run's sums.

    A patient that failed is no exception: it is counted, and named in the archive's `failures.csv`.
    Cancelling is safe: what was finished is whole, and the next run goes on from there.

    Raises:
        ConfigurationError: settings or manifest are wrong; nothing was fetched.
        CredentialsError: the API refused the credentials.
        UnreachableError: the API did not answer the first question; nothing was fetched.
        DestinationError: the archive cannot be written, or another run holds it.
    """
    with Manifest(
        manifest,
        settings.manifest_format,
        allow_empty=settings.allow_empty,
        shard=settings.shard,
    ) as opened:
        facts = await asyncio.to_thread(opened.check)
        run = Run(opened, facts, settings)
        summary = await run()
    if run.fatal is not None:
        raise run.fatal
    return summary


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
