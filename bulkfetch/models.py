"""What walks through the pipeline: manifest rows, the API's records, sidecars, outcomes, sums.

Every model is frozen. Unknown fields of the API's records are kept, and unknown statuses, sides
and file types are plain text, since the API may add to them at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    StrictInt,
    StrictStr,
)
from pydantic_core import PydanticSerializationError, to_json

SCHEMA_VERSION: Literal[1] = 1
UPLOADED = "UPLOADED"
_LONGEST_SHARD = 20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def json_text(value: object, indent: int | None = None) -> str:
    """Return JSON of a model or plain values; a lone surrogate becomes an escape."""
    try:
        return to_json(value, indent=indent).decode()
    except PydanticSerializationError:
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        text = json.dumps(plain, ensure_ascii=False, indent=indent)
        return text.encode("utf-8", "backslashreplace").decode()


def label(patient_id: str | None, coverage_id: str | None) -> str:
    """Return a row's IDs, for a message."""
    named = (("patient", patient_id), ("coverage", coverage_id))
    return ", ".join(f"{what} {identity}" for what, identity in named if identity)


class ManifestRow(_Frozen):
    """One line of a manifest: whom to ask for, and the columns that are carried along.

    At least one of the two IDs is set; neither is empty nor holds control characters.
    `line` is the 1-based line in a text manifest (of the row's first line), or the 1-based row
    of a Parquet one.
    """

    line: int
    patient_id: str | None = None
    coverage_id: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict, repr=False)

    @property
    def key(self) -> tuple[str | None, str | None]:
        """What makes two rows the same question."""
        return self.patient_id, self.coverage_id

    @property
    def label(self) -> str:
        """The IDs, for a message."""
        return label(*self.key)


class Shard(NamedTuple):
    """One of several shares of a manifest, numbered from 1.

    A row belongs to the share that the SHA-256 of its patient's ID says (of its coverage's where it
    has none), so that any job can tell its own rows without asking another.
    """

    number: int
    shares: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `I/N`.

        Raises:
            ValueError: it is not of that form, or I is not from 1 to N.
        """
        number, slash, shares = text.partition("/")
        if not (slash and number.isdecimal() and shares.isdecimal() and len(text) < _LONGEST_SHARD):
            raise ValueError("must be I/N, such as 1/4 for the first of four")
        shard = cls(int(number), int(shares))
        if not 1 <= shard.number <= shard.shares:
            raise ValueError("must be I/N with I from 1 to N")
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.shares}"

    def holds(self, patient_id: str | None, coverage_id: str | None) -> bool:
        """Tell whether a row with these IDs belongs to this share."""
        return self.share_of(patient_id, coverage_id, self.shares) == self.number

    @staticmethod
    def share_of(patient_id: str | None, coverage_id: str | None, shares: int) -> int:
        """Return which of so many shares a row with these IDs belongs to, from 1."""
        identity = (patient_id or coverage_id or "").encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(identity).digest()
        return int.from_bytes(digest[:8], "big") % shares + 1


class _FromAPI(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What the API added may be a person's name: a `repr` shows known fields only."""
        known = type(self).model_fields
        return [(name, value) for name, value in super().__repr_args__() if name in known]


class CoverageLink(_FromAPI):
    """An image's association to a coverage; `side` is FRONT, BACK, or what the API adds."""

    id: StrictStr = Field(min_length=1)
    side: StrictStr | None = None


class PatientLink(_FromAPI):
    """An image's association to a patient; `notes` are a person's words."""

    id: StrictStr = Field(min_length=1)
    notes: StrictStr | None = Field(default=None, repr=False)


def moment(text: str) -> datetime:
    """Read an ISO 8601 time; UTC where it has no zone."""
    read = datetime.fromisoformat(text)
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _timestamp(text: str) -> str:
    moment(text)
    return text


Timestamp = Annotated[StrictStr, AfterValidator(_timestamp)]
"""An ISO 8601 time, kept letter for letter as it was sent."""


class ImageRecord(_FromAPI):
    """One image as the API lists it.

    `signed_url` is a credential that can read and upload; it is None where the API gave none. It
    is never part of a sidecar, a journal or a message.
    """

    id: StrictStr = Field(min_length=1)
    # It is in a file's name, which has a longest length.
    version: StrictInt = Field(ge=0, lt=2**63)
    status: StrictStr = Field(min_length=1)
    deactivated: StrictBool = False
    updated_at: Timestamp | None = None
    organization_id: StrictStr | None = None
    display_name: StrictStr | None = Field(default=None, repr=False)
    file_name: StrictStr | None = Field(default=None, repr=False)
    file_type: StrictStr | None = None
    signed_url: SecretStr | None = None
    coverage: CoverageLink | None = None
    patient: PatientLink | None = None

    @property
    def links(self) -> tuple[str | None, str | None]:
        """Whose image it is: a patient's ID, and a coverage's."""
        return (
            self.patient.id if self.patient else None,
            self.coverage.id if self.coverage else None,
        )

    @property
    def updated(self) -> datetime | None:
        """When the image was last updated; UTC where no zone was sent."""
        return None if self.updated_at is None else moment(self.updated_at)

    def for_sidecar(self) -> dict[str, Any]:
        """The record as the API sent it, unknown fields too, without the signed URL."""
        return self.model_dump(mode="json", exclude={"signed_url"}, exclude_unset=True)


class Coverage(_FromAPI):
    """One coverage of a patient: only its ID matters here."""

    id: StrictStr = Field(min_length=1)


class Versioned(BaseModel):
    """A patient or a coverage, as far as a manifest needs it; the rest, which is PHI, is dropped.

    `updated_at` is as it was sent, and is sent back as it is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: StrictStr = Field(min_length=1)
    version: StrictInt = Field(ge=0, lt=2**63)
    updated_at: Timestamp
    deactivated: StrictBool = False
    organization_id: StrictStr | None = None

    @property
    def updated(self) -> datetime:
        """When it was last updated; UTC where no zone was sent."""
        return moment(self.updated_at)


class PatientPage(BaseModel):
    """A page of the listing of all active patients, and what leads to the next one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    items: list[Versioned]
    next_page_token: StrictStr | None = None
    total: StrictInt = Field(ge=0)


class FileInfo(_Frozen):
    """The image's file: `path` is relative to the sidecar, `size` in bytes, `sha256` in hex.

    `media_type` is what the bytes are; `declared_type` is what the API said they are.
    """

    path: str
    size: int
    sha256: str
    media_type: str
    declared_type: str | None


class Source(_Frozen):
    """Where the bytes came from, as storage said it: host, generation, digests in base64."""

    host: str
    generation: str | None
    md5: str | None
    crc32c: str | None


class Requested(_Frozen):
    """What was asked for: the IDs of the manifest row."""

    patient_id: str | None
    coverage_id: str | None


class SidecarOutcome(StrEnum):
    """What a sidecar stands for: a whole file, or an image that has none yet."""

    downloaded = "downloaded"
    not_uploaded = "not_uploaded"


class Sidecar(_Frozen):
    """The JSON beside an image, written last: if it is there, the image is whole."""

    schema_version: Literal[1]
    image_id: str
    patient_id: str | None
    coverage_id: str | None
    version: int
    status: str
    deactivated: bool
    outcome: SidecarOutcome
    file: FileInfo | None
    source: Source | None
    record: dict[str, Any] = Field(repr=False)
    requested: Requested
    manifest: dict[str, Any] | None = Field(repr=False)
    fetched_at: datetime
    run_id: str
    bulkfetch_version: str


class Unlisted(StrEnum):
    """Why an image that is in the archive is no longer listed where it was, as the API says of it.

    `gone` is 404; `moved` now belongs to another patient or coverage; `not_listed` is as it was.
    """

    deactivated = "deactivated"
    moved = "moved"
    gone = "gone"
    not_listed = "not_listed"


class UnlistedSidecar(Sidecar):
    """The state of an image that is no longer listed: always a revision of the last held version.

    `status`, `deactivated`, `patient_id`, `coverage_id` and `record` are as the API says now, so
    `record` may be of a later version; of one that is gone they are the last that was known. `file`
    is what was archived.
    """

    unlisted: Unlisted


class PatientState(StrEnum):
    """How a manifest row ended; each ends in exactly one."""

    complete = "complete"
    empty = "empty"
    failed = "failed"
    not_reached = "not_reached"


class ImageOutcome(StrEnum):
    """How a listed image ended; each ends in exactly one."""

    downloaded = "downloaded"
    unchanged = "unchanged"
    not_uploaded = "not_uploaded"
    filtered = "filtered"
    failed = "failed"
    not_reached = "not_reached"


class PatientSums(_Frozen):
    """Manifest rows by their state, the same patient counted once."""

    total: int = 0
    complete: int = 0
    empty: int = 0
    failed: int = 0
    not_reached: int = 0


class ImageSums(_Frozen):
    """Images by their outcome, at each row that lists them; `listed` is the sum of the rest."""

    listed: int = 0
    downloaded: int = 0
    unchanged: int = 0
    not_uploaded: int = 0
    filtered: int = 0
    failed: int = 0
    not_reached: int = 0


class ToFetch(_Frozen):
    """What a dry run would fetch: so many images.

    Of `sized` of them the size is known, `bytes` together, since the archive's sidecars of the same
    version tell it. `estimated_bytes` is for all, where each other one is taken to be as large as
    the mean of `estimated_from` files that were looked at in the archive; None where there were
    none, since storage is not asked.
    """

    images: int
    sized: int
    bytes: int
    estimated_bytes: int | None
    estimated_from: int


Filters = dict[str, tuple[str, ...]]
"""Options that say which images are wanted, by their fields' names; one of its values will do."""


class Summary(_Frozen):
    """What a run did; the sums balance.

    `head` is the digest of the last line of the run's first journal, which stands for all that it
    recorded (see `bulkfetch.chain`); None where nothing was written. `retried_by_kind` counts the
    same `retries` by the kind of the error. `unlisted` are the images in the archive that were
    found to be no longer listed, by what became of them; `listed_again` those that an earlier row
    brought. `failures` is the path of the manifest of what failed, None where nothing did;
    `failed_by_kind` counts the same patients by the kind of their first error. `filters` are the
    options that said which images were wanted. Of a `shard`, the sums are those of its own rows.
    `manifest_sha256` is of the manifest's file, as it was read. A dry run tells what is `to_fetch`.
    """

    run_id: str
    started_at: datetime
    finished_at: datetime
    seconds: float
    interrupted: bool
    exit_code: int
    dry_run: bool = False
    to_fetch: ToFetch | None = None
    shard: str | None = None
    patients: PatientSums
    images: ImageSums
    bytes: int
    retries: int
    retried_by_kind: dict[str, int] = Field(default_factory=dict)
    failed_by_kind: dict[str, int] = Field(default_factory=dict)
    filters: Filters = Field(default_factory=dict)
    head: str | None = None
    unlisted: dict[Unlisted, int] = Field(default_factory=dict)
    duplicate_rows: int = 0
    listed_again: int = 0
    manifest_sha256: str | None = None
    failures: str | None = None
    bulkfetch_version: str
