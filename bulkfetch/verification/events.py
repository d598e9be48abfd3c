"""The lines of journals, as far as a verification needs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter, ValidationError

from bulkfetch.models import Filters, ImageOutcome, ImageSums, PatientState, PatientSums, Timestamp
from bulkfetch.paths import safe_name
from bulkfetch.plan import Place

# As large as a number of these can be; what is more was not written by a run.
_Number = Annotated[int, Field(ge=0, lt=2**63)]


class _Line(BaseModel):
    """Whatever it tells, `previous` is the digest of the line before."""

    previous: str | None = None


class _OfAnImage(_Line):
    image_id: str
    version: _Number
    directory: str
    at: Timestamp

    @property
    def place(self) -> Place:
        """Where it lies."""
        return Place(self.directory, f"{safe_name(self.image_id)}.v{self.version}")

    @property
    def image(self) -> str:
        """What is the same in the paths of its files."""
        return f"{self.directory}/{self.place.stem}"


class StartedEvent(_Line):
    """The beginning of a run."""

    event: Literal["run_started"]
    filters: Filters = Field(default_factory=dict)


class PatientEvent(_Line):
    """A patient's end."""

    event: Literal["patient"]
    patient_id: str | None = None
    coverage_id: str | None = None
    state: PatientState
    kind: str | None = None
    error: str | None = None
    at: Timestamp


class ImageEvent(_OfAnImage):
    """An image's end; of one that is `unlisted`, what was noted of it, with no outcome.

    `sidecar` is the digest of the sidecar that was written, of a `revision` if not the first.
    """

    event: Literal["image", "unlisted"]
    patient_id: str | None = None
    coverage_id: str | None = None
    status: str | None = None
    outcome: ImageOutcome | None = None
    bytes: _Number = 0
    seconds: Annotated[float, Field(ge=0, lt=2**31)] | None = None
    kind: str | None = None
    error: str | None = None
    sidecar: str | None = None
    revision: int = 1

    @property
    def path(self) -> str:
        """The sidecar that it vouches for."""
        return f"{self.directory}/{self.place.sidecar(self.revision)}"


class QuarantinedEvent(_OfAnImage):
    """What is held of an image is about to be moved away."""

    event: Literal["quarantined"]


class FinishedEvent(_Line):
    """The end of a run."""

    event: Literal["run_finished"]
    patients: PatientSums
    images: ImageSums
    bytes: int


class DiedEvent(_Line):
    """A process of the run ended early: its journal may lack what it told of last."""

    event: Literal["process_died"]


class OtherEvent(_Line):
    """Whatever else happened."""

    event: str


Event = (
    StartedEvent
    | PatientEvent
    | ImageEvent
    | QuarantinedEvent
    | FinishedEvent
    | DiedEvent
    | OtherEvent
)
_TAGS = {
    "run_started": "started",
    "patient": "patient",
    "image": "image",
    "unlisted": "image",
    "quarantined": "quarantined",
    "run_finished": "finished",
    "process_died": "died",
}


def _kind_of(event: object) -> str:
    kind = event.get("event") if isinstance(event, dict) else None
    return _TAGS.get(str(kind), "other")


_EVENT: TypeAdapter[Event] = TypeAdapter(
    Annotated[
        Annotated[StartedEvent, Tag("started")]
        | Annotated[PatientEvent, Tag("patient")]
        | Annotated[ImageEvent, Tag("image")]
        | Annotated[QuarantinedEvent, Tag("quarantined")]
        | Annotated[FinishedEvent, Tag("finished")]
        | Annotated[DiedEvent, Tag("died")]
        | Annotated[OtherEvent, Tag("other")],
        Discriminator(_kind_of),
    ]
)


# By what a run begins such a line with: to look for what kind it is takes longer than to read it.
_WRITTEN: dict[bytes, TypeAdapter[Event]] = {
    b'{"event":"image",': TypeAdapter(ImageEvent),
    b'{"event":"patient",': TypeAdapter(PatientEvent),
}


def event_of(line: bytes) -> Event | None:
    """Return the event of a journal's line, None where it is none."""
    event = _WRITTEN.get(line[: line.find(b",") + 1], _EVENT)
    try:
        return event.validate_json(line) if line.endswith(b"\n") else None
    except ValidationError:
        return None
