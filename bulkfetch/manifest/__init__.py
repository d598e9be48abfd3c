"""Whom to fetch: manifests in every form, checked whole before anything is asked of the API."""

from bulkfetch.manifest.reader import Manifest, ManifestFacts
from bulkfetch.manifest.source import STANDARD_INPUT, ManifestFormat

__all__ = ["STANDARD_INPUT", "Manifest", "ManifestFacts", "ManifestFormat"]
