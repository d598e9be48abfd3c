"""The images that the API shows: the seeded ones, and on top of them whatever was changed since.

Searches, writes with their version check, and what tests may do behind the API's back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bulkfetch.simulator.documents import JsonObject
from bulkfetch.simulator.identifiers import Identifiers
from bulkfetch.simulator.population import ImageRecord, Population

__all__ = ["SORT_FIELDS", "Catalog", "ImageFilter", "VersionConflict"]

SORT_FIELDS: dict[str, Callable[[ImageRecord], Any]] = {
    "updatedAt": lambda image: image.updated_ms,
    "fileName": lambda image: image.file_name,
    "displayName": lambda image: image.display_name,
    "fileType": lambda image: image.file_type,
    "status": lambda image: image.status,
}


class VersionConflict(Exception):  # noqa: N818 - the API's own word for it
    """A write named a version that is not the latest, or a side of a coverage that is taken."""

    def __init__(self, message: str, latest_version: int) -> None:
        super().__init__(message)
        self.latest_version = latest_version


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFilter:
    """What a search asks for; None is anything."""

    patient_id: str | None = None
    coverage_id: str | None = None
    file_type: str | None = None
    patient_notes: str | None = None

    def admits(self, image: ImageRecord) -> bool:
        """Whether the image is in the search's answer, where deactivated ones never are."""
        notes = (image.patient_notes or "").casefold()
        return (
            not image.deactivated
            and self.patient_id in (None, image.patient_id)
            and self.coverage_id in (None, image.coverage_id)
            and self.file_type in (None, image.file_type)
            and (self.patient_notes is None or self.patient_notes.casefold() in notes)
        )


class Catalog:
    """All images, by ID and by search."""

    def __init__(self, population: Population, seed: int, clock: Callable[[], float]) -> None:
        self._population = population
        self._clock = clock
        self._new_ids = Identifiers(seed, "created image")
        self._created = 0
        self._changed: dict[str, ImageRecord] = {}
        self.patches: dict[str, JsonObject] = {}
        """Fields laid over an image's JSON as it is sent, by image ID."""
        self.removed: set[str] = set()
        """IDs of images that were deleted for good."""
        self.merges: dict[str, str] = {}
        """Patients merged into others: asked for the first, the API shows the second's images."""

    def image(self, image_id: str) -> ImageRecord | None:
        """The image with this ID as it is now, deactivated or not."""
        if image_id in self.removed:
            return None
        return self._changed.get(image_id) or self._population.find_image(image_id)

    def search(
        self, wanted: ImageFilter, sort_field: str = "updatedAt", *, descending: bool = True
    ) -> list[ImageRecord]:
        """The images that a search finds, in the order it asks for; ties are broken by ID."""
        if wanted.patient_id in self.merges:
            wanted = replace(wanted, patient_id=self.merges[wanted.patient_id])
        found = {i.id: i for i in self._candidates(wanted) if i.id not in self.removed}
        admitted = sorted(filter(wanted.admits, found.values()), key=lambda image: image.id)
        admitted.sort(key=SORT_FIELDS[sort_field], reverse=descending)
        return admitted

    def create(self, image: ImageRecord) -> ImageRecord:
        """Adds an image; its ID, version and time are made here.

        Raises VersionConflict when that side of that coverage has an image.
        """
        if image.coverage_id is not None:
            for other in self.search(ImageFilter(coverage_id=image.coverage_id)):
                if other.coverage_side == image.coverage_side:
                    raise VersionConflict(
                        f"coverage {image.coverage_id} has a {image.coverage_side} image already",
                        other.version,
                    )
        self._created += 1
        return self._store(replace(image, id=self._new_ids.make(self._created), version=1))

    def update(self, image: ImageRecord, version: int) -> ImageRecord:
        """Replaces the image of this ID, whose latest version must be `version`.

        Raises LookupError when there is none, VersionConflict when the version is another.
        """
        latest = self.image(image.id)
        if latest is None:
            raise LookupError(image.id)
        if latest.version != version:
            raise VersionConflict(
                f"image {image.id} is at version {latest.version}, not {version}", latest.version
            )
        return self._store(replace(image, version=version + 1))

    def _store(self, image: ImageRecord) -> ImageRecord:
        stored = replace(image, updated_ms=int(self._clock() * 1000))
        self._changed[image.id] = stored
        return stored

    def _candidates(self, wanted: ImageFilter) -> Iterator[ImageRecord]:
        """The images that a search might find, in their present state: no others are looked at."""
        for index in self._owners(wanted):
            for image in self._population.patient_images(index):
                yield self._changed.get(image.id, image)
        yield from self._changed.values()

    def _owners(self, wanted: ImageFilter) -> range:
        """Indices of the patients among whose seeded images a search has to look."""
        owner = None
        if wanted.coverage_id is not None:
            coverage = self._population.find_coverage(wanted.coverage_id)
            owner = coverage and coverage.patient
        elif wanted.patient_id is not None:
            owner = self._population.find_patient(wanted.patient_id)
        else:
            return range(self._population.size)
        return range(0) if owner is None else range(owner.index, owner.index + 1)
