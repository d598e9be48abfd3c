"""What the operating system allows a process, read before a run relies on it."""

from __future__ import annotations

import logging
import os
import resource

from bulkfetch.logs import Event, about
from bulkfetch.settings import Settings
from bulkfetch.stores import file_path, is_url
from bulkfetch.words import counted

# A download holds a socket, a directory and at most two files; a query holds a socket.
_FILES_PER_DOWNLOAD = 4
_FILES_BESIDES = 64

# More cores than these are seldom what a run waits for; and starting a process takes as long as
# some hundred patients do.
_PROCESSES_BY_DEFAULT = 4
_PATIENTS_PER_PROCESS = 200

log = logging.getLogger(__name__)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processes_for(settings: Settings, patients: int) -> int:
    """Return how many processes a run is to have: as told, or what machine and manifest are worth.

    Each has at least one query and one download, and a dry run is one. Into an object store a core
    is left to what sends there, in compiled code beside the interpreters (docs/performance.md).
    """
    wanted = settings.processes
    if wanted is None:
        cores = usable_cores() - is_url(file_path(settings.out))
        wanted = min(cores, _PROCESSES_BY_DEFAULT, patients // _PATIENTS_PER_PROCESS)
    most = 1 if settings.dry_run else min(settings.query_concurrency, settings.download_concurrency)
    return max(1, min(wanted, most))


def files_needed(settings: Settings) -> int:
    """Return how many files a run may have open at once."""
    return (
        _FILES_BESIDES
        + settings.query_concurrency
        + _FILES_PER_DOWNLOAD * settings.download_concurrency
    )


def fit_to_open_files(settings: Settings) -> Settings:
    """Return settings whose concurrency the limit on open files allows, and raise that if need be.

    Says so where they are not the same.
    """
    queries, downloads = settings.query_concurrency, settings.download_concurrency
    needed = files_needed(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return settings
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return settings
    share = max(0.0, (allowed - _FILES_BESIDES) / (needed - _FILES_BESIDES))
    queries, downloads = max(1, int(queries * share)), max(1, int(downloads * share))
    log.warning(
        "only %s may be open at once (ulimit -n): %s and %s at once",
        counted(allowed, "file"),
        counted(queries, "query"),
        counted(downloads, "download"),
        extra=about(Event.bounds_lowered, open_files=allowed, queries=queries, downloads=downloads),
    )
    return settings.model_copy(
        update={"query_concurrency": queries, "download_concurrency": downloads}
    )
