"""Manifests made: from what the API lists, or from another manifest."""

from bulkfetch.building.build import STANDARD_OUTPUT, Built, Sofar, build_manifest
from bulkfetch.building.split import Split, split_manifest

__all__ = ["STANDARD_OUTPUT", "Built", "Sofar", "Split", "build_manifest", "split_manifest"]
