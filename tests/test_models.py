"""What the models promise besides their fields."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bulkfetch.models import ImageRecord, ManifestRow

NAME = "Testperson Example"


def record(**fields: object) -> ImageRecord:
    return ImageRecord.model_validate({"id": "i-1", "version": 1, "status": "UPLOADED", **fields})


def test_the_repr_of_a_record_holds_no_name_note_or_signed_url() -> None:
    shown = repr(
        record(
            display_name=NAME,
            file_name=NAME,
            added_by_the_api=NAME,
            patient={"id": "p-1", "notes": NAME, "added": NAME},
            coverage={"id": "c-1", "side": "FRONT", "added": NAME},
            signed_url="https://storage.invalid/o?X-Goog-Signature=abc",
        )
    )
    assert NAME not in shown
    assert "X-Goog" not in shown
    assert "i-1" in shown


def test_the_repr_of_a_manifest_row_holds_no_other_column() -> None:
    assert NAME not in repr(ManifestRow(line=1, patient_id="p-1", extra={"name": NAME}))


def test_the_record_for_a_sidecar_is_what_was_sent_without_the_signed_url() -> None:
    sent = {
        "id": "i-1",
        "version": 3,
        "status": "SOMETHING_NEW",
        "updated_at": "2024-01-15T09:30:00.120Z",
        "added": {"deep": [1, None, "x"]},
        "patient": {"id": "p-1", "added": True},
        "coverage": None,
    }
    assert record(**sent, signed_url="https://storage.invalid/o").for_sidecar() == sent


@pytest.mark.parametrize(
    ("text", "hour"), [("2024-01-15T09:30:00Z", 9), ("2024-01-15T09:30:00", 9)]
)
def test_a_time_without_a_zone_is_utc(text: str, hour: int) -> None:
    updated = record(updated_at=text).updated
    assert updated is not None
    assert updated.utctimetuple().tm_hour == hour


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": "1"},
        {"version": True},
        {"id": ""},
        {"status": None},
        {"updated_at": "yesterday"},
        {"patient": {"notes": "no ID"}},
        {"coverage": "c-1"},
        {"deactivated": "no"},
    ],
)
def test_a_record_of_another_shape_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        record(**wrong)
