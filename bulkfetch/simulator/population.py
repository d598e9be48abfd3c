"""The seeded population: patients, coverages and images, worked out from an index when asked for.

Nothing is kept but what was touched since: a million patients cost no memory. Images of a patient
have the indices `patient * 16` onward, and coverages `patient * 4` onward, so that an identifier
leads to its owner.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from bulkfetch.simulator import names
from bulkfetch.simulator.config import MOST_IMAGES, SimulatorConfig
from bulkfetch.simulator.faces import Media, Side
from bulkfetch.simulator.identifiers import Dice, Identifiers
from bulkfetch.simulator.timestamps import DAY_MS, milliseconds

__all__ = ["CoverageRecord", "ImageRecord", "PatientRecord", "Population"]

_IMAGE_SLOTS = 16
_COVERAGE_SLOTS = 4
_DEACTIVATED_SLOT = 8
_COVERAGE_ONLY_SLOTS = (9, 10)
"""Slots after those of the ordinary images; the rest are never used."""

_WITHOUT_IMAGES = 0.08
_COVERAGE_ONLY = 0.25
_DEACTIVATED_IMAGE = 0.15
_DEACTIVATED_EVERY = 41
"""One patient in so many is deactivated; a fixed step makes the number of the others a formula."""

_EPOCH_MS = milliseconds("2023-01-02T08:00:00Z")
_SPAN_MS = 700 * DAY_MS
_INSTANT_SIZES = (1, 1, 3, 1, 12, 1, 2, 1, 1, 5, 1, 1, 1, 1)
"""Sizes of the groups of patients that share one time: 32 patients, over and over."""
_INSTANT_STARTS = tuple(sum(_INSTANT_SIZES[:n]) for n in range(len(_INSTANT_SIZES) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """An image as the API knows it, but for its URL and organization."""

    id: str
    version: int
    updated_ms: int
    deactivated: bool
    updating_user_id: str
    display_name: str
    file_name: str
    file_type: str
    status: str
    patient_id: str | None = None
    patient_notes: str | None = None
    coverage_id: str | None = None
    coverage_side: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientRecord:
    """The little of a patient that is drawn; the rest follows from it."""

    index: int
    id: str
    version: int
    updated_ms: int
    deactivated: bool
    given: str
    family: str
    image_count: int
    coverage_count: int
    has_coverage_only_images: bool
    has_deactivated_image: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRecord:
    """The little of a coverage that is drawn."""

    id: str
    index: int
    slot: int
    patient: PatientRecord


class Population:
    """Everything that can be said about the patients 0 to `config.patients - 1` of a seed."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._config = config
        self._seed = config.seed
        self.size = config.patients
        self._seeded = range(self.size)
        self._touched_patients: dict[int, tuple[int, int]] = {}
        self._touched_coverages: dict[int, tuple[int, int]] = {}
        self._patients = Identifiers(self._seed, "patient")
        self._coverages = Identifiers(self._seed, "coverage")
        self._images = Identifiers(self._seed, "image")
        self.user_id = Identifiers(self._seed, "user").make(1)
        mean = config.images_per_patient
        self._empty_share = min(_WITHOUT_IMAGES, 1 - mean / MOST_IMAGES) if mean else 1.0
        # One image, and then seven tosses: the mean comes out as asked.
        self._toss = (mean / (1 - self._empty_share) - 1) / (MOST_IMAGES - 1) if mean else 0.0
        instants = self._instant(max(self.size - 1, 0)) + 1
        self._step_ms = max(2, min(60_000, _SPAN_MS // instants))
        # Bound to this object's seed; entities are asked for several times in a row.
        self.patient = lru_cache(maxsize=4096)(self._make_patient)
        self.patient_images = lru_cache(maxsize=1024)(self._make_patient_images)

    def patient_id(self, index: int) -> str:
        """The ID of the patient at `index`."""
        return self._patients.make(index)

    def find_patient(self, patient_id: str) -> PatientRecord | None:
        """The patient with this ID, or None."""
        index = self._patients.index(patient_id)
        return None if index is None or index >= self.size else self.patient(index)

    def active_patients_before(self, index: int) -> int:
        """How many of the patients before `index` are not deactivated."""
        phase = self._seed % _DEACTIVATED_EVERY
        return index - ((index + phase) // _DEACTIVATED_EVERY - phase // _DEACTIVATED_EVERY)

    def patients_since(self, since_ms: int) -> Iterator[PatientRecord]:
        """Patients updated at or after a time, in order of `updated_at` (and of the index)."""
        touched = self._touched_patients
        seeded = (index for index in self._seeded_since(since_ms) if index not in touched)
        later = (index for index, (_, at_ms) in touched.items() if at_ms >= since_ms)

        def place(index: int) -> tuple[int, int]:
            return touched[index][1] if index in touched else self.updated_ms(index), index

        return map(self.patient, heapq.merge(seeded, sorted(later, key=place), key=place))

    def coverages_since(self, since_ms: int) -> Iterator[CoverageRecord]:
        """Coverages updated at or after a time, in order of `updated_at` (and of the index)."""
        touched = self._touched_coverages
        seeded = (
            coverage
            for index in self._seeded_since(since_ms)
            for coverage in self.coverages(self.patient(index))
            if coverage.index not in touched
        )

        def place(coverage: CoverageRecord) -> tuple[int, int]:
            return self.coverage_state(coverage)[1], coverage.index

        later = (
            self._coverage(self.patient(index // _COVERAGE_SLOTS), index % _COVERAGE_SLOTS)
            for index, (_, at_ms) in touched.items()
            if at_ms >= since_ms
        )
        return heapq.merge(seeded, sorted(later, key=place), key=place)

    def patient_state(self, patient: PatientRecord) -> tuple[int, int]:
        """A patient's version and time of update as they are now."""
        return self._touched_patients.get(patient.index, (patient.version, patient.updated_ms))

    def coverage_state(self, coverage: CoverageRecord) -> tuple[int, int]:
        """A coverage's version and time of update as they are now; at first its patient's."""
        patient = coverage.patient
        return self._touched_coverages.get(coverage.index, (patient.version, patient.updated_ms))

    def touch_patient(self, patient: PatientRecord, at_ms: int) -> None:
        """Makes a new version of a patient; its images and coverages stay as they are."""
        version, _ = self.patient_state(patient)
        self._touched_patients[patient.index] = version + 1, at_ms

    def touch_coverage(self, coverage: CoverageRecord, at_ms: int) -> None:
        """Makes a new version of a coverage; its patient and images stay as they are."""
        version, _ = self.coverage_state(coverage)
        self._touched_coverages[coverage.index] = version + 1, at_ms

    def add_patient(self, at_ms: int) -> PatientRecord:
        """Adds the patient at the next index, as of a time."""
        patient = self.patient(self.size)
        self.size += 1
        self._touched_patients[patient.index] = 1, at_ms
        for coverage in self.coverages(patient):
            self._touched_coverages[coverage.index] = 1, at_ms
        return patient

    def _seeded_since(self, since_ms: int) -> range:
        return self._seeded[bisect_left(self._seeded, since_ms, key=self.updated_ms) :]

    def updated_ms(self, patient_index: int) -> int:
        """When a patient was updated as it was seeded, in milliseconds since 1970."""
        instant = self._instant(patient_index)
        jitter = Dice(self._seed, "instant", instant).below(self._step_ms - 1)
        return _EPOCH_MS + instant * self._step_ms + jitter

    def coverages(self, patient: PatientRecord) -> list[CoverageRecord]:
        """A patient's coverages, the primary one first."""
        return [self._coverage(patient, slot) for slot in range(patient.coverage_count)]

    def find_coverage(self, coverage_id: str) -> CoverageRecord | None:
        """The coverage with this ID, or None."""
        index = self._coverages.index(coverage_id)
        if index is None or index >= self.size * _COVERAGE_SLOTS:
            return None
        owner, slot = divmod(index, _COVERAGE_SLOTS)
        patient = self.patient(owner)
        return self._coverage(patient, slot) if slot < patient.coverage_count else None

    def find_image(self, image_id: str) -> ImageRecord | None:
        """The image with this ID as it was seeded, or None."""
        index = self._images.index(image_id)
        if index is None or index >= self.size * _IMAGE_SLOTS:
            return None
        owner = index // _IMAGE_SLOTS
        return next((i for i in self.patient_images(owner) if i.id == image_id), None)

    def picture(self, image_id: str) -> tuple[Media, Side, int]:
        """What a seeded image shows: form, side, and a number that picks the face."""
        index = self._images.index(image_id)
        if index is None:
            raise LookupError(f"no seeded image has the ID {image_id}")
        slot = index % _IMAGE_SLOTS
        dice = Dice(self._seed, "picture", index)
        on_card = self._card_of(self.patient(index // _IMAGE_SLOTS), slot) is not None
        forms = (
            (Media.JPEG, Media.JPEG, Media.PNG)
            if on_card
            else (Media.PDF, Media.PDF, Media.JPEG, Media.PNG)
        )
        side = Side.FRONT if slot in (0, 2, 4, _COVERAGE_ONLY_SLOTS[0]) else Side.BACK
        return dice.choice(forms), side, dice.below(1 << 16)

    def _instant(self, patient_index: int) -> int:
        """The ordinal of the group that a patient shares its time with."""
        size = self._config.patients_per_instant
        if size is not None:
            return patient_index // size
        cycle, place = divmod(patient_index, _INSTANT_STARTS[-1])
        within = next(n for n, start in enumerate(_INSTANT_STARTS[1:]) if place < start)
        return cycle * len(_INSTANT_SIZES) + within

    def _make_patient(self, index: int) -> PatientRecord:
        dice = Dice(self._seed, "patient", index)
        count = 0
        if not dice.chance(self._empty_share):
            count = 1 + sum(dice.chance(self._toss) for _ in range(MOST_IMAGES - 1))
        coverages = dice.choice((0, 1, 1, 1, 1, 2, 2, 3))
        return PatientRecord(
            index=index,
            id=self._patients.make(index),
            version=1 + dice.below(4),
            updated_ms=self.updated_ms(index),
            deactivated=(index + self._seed) % _DEACTIVATED_EVERY == _DEACTIVATED_EVERY - 1,
            given=dice.choice(names.GIVEN_NAMES),
            family=dice.choice(names.FAMILY_NAMES),
            image_count=count,
            coverage_count=coverages,
            has_coverage_only_images=coverages > 0 and dice.chance(_COVERAGE_ONLY),
            has_deactivated_image=dice.chance(_DEACTIVATED_IMAGE),
        )

    def _make_patient_images(self, index: int) -> tuple[ImageRecord, ...]:
        """All images whose index is the patient's, those in no search of the patient's too."""
        patient = self.patient(index)
        slots = list(range(patient.image_count))
        if patient.has_deactivated_image:
            slots.append(_DEACTIVATED_SLOT)
        if patient.has_coverage_only_images and self._config.images_per_patient:
            slots += _COVERAGE_ONLY_SLOTS
        return tuple(self._make_image(patient, slot) for slot in slots)

    def _make_image(self, patient: PatientRecord, slot: int) -> ImageRecord:
        index = patient.index * _IMAGE_SLOTS + slot
        image_id = self._images.make(index)
        media, side, _ = self.picture(image_id)
        dice = Dice(self._seed, "image", index)
        filling = {"given": patient.given, "family": patient.family, "number": dice.below(10_000)}
        file_name = dice.choice(names.FILE_STEMS).format(**filling)
        if not dice.chance(0.1):
            file_name += "." + media.value.rpartition("/")[2]
        coverage = self._card_of(patient, slot)
        on_patient = slot not in _COVERAGE_ONLY_SLOTS
        status = dice.below(100)
        return ImageRecord(
            id=image_id,
            version=1 + dice.below(4),
            updated_ms=patient.updated_ms + dice.below(30 * DAY_MS),
            deactivated=slot == _DEACTIVATED_SLOT,
            updating_user_id=self.user_id,
            display_name=dice.choice(names.DISPLAY_NAMES).format(**filling),
            file_name="" if dice.chance(0.02) else file_name,
            file_type=dice.choice(names.ODD_FILE_TYPES) if dice.chance(0.1) else media.value,
            status="UPLOADED" if status < 91 else "PENDING" if status < 96 else "FAILED",
            patient_id=patient.id if on_patient else None,
            patient_notes=dice.choice(names.NOTES) if on_patient else None,
            coverage_id=None if coverage is None else coverage.id,
            coverage_side=None if coverage is None else side.value,
        )

    def _card_of(self, patient: PatientRecord, slot: int) -> CoverageRecord | None:
        """The coverage whose card a slot shows: two slots each, the last one's perhaps apart."""
        if slot in _COVERAGE_ONLY_SLOTS:
            return self._coverage(patient, patient.coverage_count - 1)
        coverage_slot = slot // 2
        on_patient = patient.coverage_count - patient.has_coverage_only_images
        return self._coverage(patient, coverage_slot) if coverage_slot < on_patient else None

    def _coverage(self, patient: PatientRecord, slot: int) -> CoverageRecord:
        index = patient.index * _COVERAGE_SLOTS + slot
        return CoverageRecord(
            id=self._coverages.make(index), index=index, slot=slot, patient=patient
        )
