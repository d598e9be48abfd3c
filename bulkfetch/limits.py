"""What the operating system allows a process, read before a run relies on it."""

from __future__ import annotations

import logging
import resource

from bulkfetch.settings import Settings

# A download holds a socket, a directory and at most two files; a query holds a socket.
_FILES_PER_DOWNLOAD = 4
_FILES_BESIDES = 64

log = logging.getLogger(__name__)


def fit_to_open_files(settings: Settings) -> Settings:
    """Return settings whose concurrency the limit on open files allows, and raise that if need be.

    Says so where they are not the same.
    """
    queries, downloads = settings.query_concurrency, settings.download_concurrency
    needed = _FILES_BESIDES + queries + _FILES_PER_DOWNLOAD * downloads
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
        "only %d files may be open at once (ulimit -n): %d queries and %d downloads at once",
        allowed,
        queries,
        downloads,
    )
    return settings.model_copy(
        update={"query_concurrency": queries, "download_concurrency": downloads}
    )
