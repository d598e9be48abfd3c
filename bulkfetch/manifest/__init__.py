"""Whom to fetch: manifests in every form, checked whole before anything is asked of the API."""

from bulkfetch.manifest.reader import Manifest, ManifestFacts
from bulkfetch.manifest.source import ManifestFormat

__all__ = ["Manifest", "ManifestFacts", "ManifestFormat"]
