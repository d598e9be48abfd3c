"""The sums of a run while it goes on."""

from __future__ import annotations

from collections import Counter

from bulkfetch.measures import InFlight, Measures
from bulkfetch.models import ImageOutcome, ImageSums, PatientState, PatientSums, Unlisted


class Tally:
    """The sums of a run while it goes on; those of its processes can be added.

    Attributes:
        total: patients in the manifest, or in the share of it that somebody else does not count.
        kinds: patients that failed, by the kind of their first error.
        listed_again: images that an earlier row of the run had brought to the archive.
        measures: of the requests that were made.
        in_flight: what is under way at the moment. This and what follows is of what is shown
            alone, and of no sum.
        kept_back: how many queries fewer, since the API says that it is too much.
        is_paused: whether a service is left alone.
        hindrance: what holds the run up, in words; None when nothing does.
    """

    in_flight = InFlight()
    kept_back = 0
    is_paused = False
    hindrance: str | None = None

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.patients: Counter[PatientState] = Counter()
        self.kinds: Counter[str] = Counter()
        self.images: Counter[ImageOutcome] = Counter()
        self.unlisted: Counter[Unlisted] = Counter()
        self.listed = 0
        self.listed_again = 0
        self.bytes = 0
        self.measures = Measures()

    def __add__(self, other: Tally) -> Tally:
        """Return the sums of both."""
        both = Tally(self.total + other.total)
        both.patients = self.patients + other.patients
        both.kinds = self.kinds + other.kinds
        both.images = self.images + other.images
        both.unlisted = self.unlisted + other.unlisted
        both.listed = self.listed + other.listed
        both.listed_again = self.listed_again + other.listed_again
        both.bytes = self.bytes + other.bytes
        both.measures = self.measures + other.measures
        return both

    @property
    def done(self) -> int:
        """Patients that have ended, one way or another."""
        return self.patients.total()

    def patient_sums(self) -> PatientSums:
        """The patients by state; those that the run never came to are `not_reached`."""
        ended = dict(self.patients)
        ended[PatientState.not_reached] = (
            self.patients[PatientState.not_reached] + self.total - self.done
        )
        return PatientSums(total=self.total, **{state.value: n for state, n in ended.items()})

    def image_sums(self) -> ImageSums:
        """The images by outcome."""
        return ImageSums(
            listed=self.listed, **{outcome.value: n for outcome, n in self.images.items()}
        )
