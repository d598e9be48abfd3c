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
        DestinationError,
        ManifestError,
        UnreachableError,
    )
    from bulkfetch.library import download, download_async
    from bulkfetch.models import ImageSums, PatientSums, Sidecar, Summary
    from bulkfetch.settings import Environment, Settings
    from bulkfetch.verification import Finding, Report, verify

__all__ = [
    "ArchiveMismatchError",
    "BulkfetchError",
    "ConfigurationError",
    "CredentialsError",
    "DestinationError",
    "Environment",
    "Finding",
    "ImageSums",
    "ManifestError",
    "PatientSums",
    "Report",
    "Settings",
    "Sidecar",
    "Summary",
    "UnreachableError",
    "__version__",
    "download",
    "download_async",
    "verify",
]

_HOMES = {
    "bulkfetch.library": ("download", "download_async"),
    "bulkfetch.models": ("ImageSums", "PatientSums", "Sidecar", "Summary"),
    "bulkfetch.settings": ("Environment", "Settings"),
    "bulkfetch.verification": ("Finding", "Report", "verify"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "bulkfetch.errors")
    return getattr(importlib.import_module(home), name)
