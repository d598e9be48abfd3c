"""Bulk export of patients' insurance-card images from the Candid Health pre-encounter API.

    from bulkfetch import Settings, download

    summary = download("patients.csv", Settings(out="archive"))
    print(summary.images.downloaded, "images,", summary.patients.failed, "patients failed")

Names are imported when they are first used, so that `bulkfetch --help` starts at once.
"""

from __future__ import annotations

import importlib

from bulkfetch._version import __version__

# `typing` has the same, and takes a fifth of what `bulkfetch --help` does to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from bulkfetch.errors import (
        ArchiveMismatchError,
        BulkfetchError,
        ConfigurationError,
        CredentialsError,
        DamagedError,
        DestinationError,
        EngineError,
        ManifestError,
        UnreachableError,
    )
    from bulkfetch.library import download, download_async, run
    from bulkfetch.models import (
        ImageOutcome,
        ImageSums,
        PatientState,
        PatientSums,
        Sidecar,
        Summary,
        Unlisted,
        UnlistedSidecar,
    )
    from bulkfetch.outcomes import ImageEnded, PatientEnded
    from bulkfetch.reading import Archive, ArchivedImage, ArchivedRun
    from bulkfetch.settings import Environment, Settings
    from bulkfetch.verification import Finding, Report, verify

__all__ = [
    "Archive",
    "ArchiveMismatchError",
    "ArchivedImage",
    "ArchivedRun",
    "BulkfetchError",
    "ConfigurationError",
    "CredentialsError",
    "DamagedError",
    "DestinationError",
    "EngineError",
    "Environment",
    "Finding",
    "ImageEnded",
    "ImageOutcome",
    "ImageSums",
    "ManifestError",
    "PatientEnded",
    "PatientState",
    "PatientSums",
    "Report",
    "Settings",
    "Sidecar",
    "Summary",
    "Unlisted",
    "UnlistedSidecar",
    "UnreachableError",
    "__version__",
    "download",
    "download_async",
    "run",
    "verify",
]

_HOMES = {
    "bulkfetch.library": ("download", "download_async", "run"),
    "bulkfetch.models": (
        "ImageOutcome",
        "ImageSums",
        "PatientState",
        "PatientSums",
        "Sidecar",
        "Summary",
        "Unlisted",
        "UnlistedSidecar",
    ),
    "bulkfetch.outcomes": ("ImageEnded", "PatientEnded"),
    "bulkfetch.reading": ("Archive", "ArchivedImage", "ArchivedRun"),
    "bulkfetch.settings": ("Environment", "Settings"),
    "bulkfetch.verification": ("Finding", "Report", "verify"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "bulkfetch.errors")
    return getattr(importlib.import_module(home), name)
