"""What the report's processes do where one of the images ends the process that decodes it."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Sequence

from bulkfetch.report.pictures import Job, Sheet, sheet_of


def deadly_sheet(jobs: Sequence[Job], deadly: Collection[Job] = ()) -> Sheet:
    """As `sheet_of`, in a process that one of the images ends."""
    if any("deadly" in job.path for job in jobs if job not in deadly):
        os.kill(os.getpid(), signal.SIGKILL)
    return sheet_of(jobs, deadly)


def dies_of(job: Job) -> bool:
    """As `survives`, in the same process."""
    return deadly_sheet([job]).made == [True]
