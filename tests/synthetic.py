"""An archive written without a run: whatever a stranger may have put into it."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from bulkfetch.archive import Identity
from bulkfetch.media import EXTENSIONS
from bulkfetch.models import (
    FileInfo,
    ImageRecord,
    ManifestRow,
    Requested,
    Sidecar,
    SidecarOutcome,
    json_text,
)
from bulkfetch.plan import place_of


def make_empty(archive: Path) -> Path:
    """Make an archive in which no run has begun."""
    (archive / ".bulkfetch").mkdir(mode=0o700, parents=True)
    identity = Identity(api_host="api.example.org").model_dump_json()
    (archive / ".bulkfetch/archive.json").write_text(identity)
    return archive


def add_image(
    archive: Path,
    content: bytes | None = None,
    media_type: str = "image/jpeg",
    *,
    image_id: str = "an-image",
    patient_id: str = "a-patient",
    side: str = "FRONT",
    manifest: dict[str, Any] | None = None,
    **record: Any,
) -> Path:
    """Write an image with its sidecar where they belong, and return the sidecar's path."""
    told = {
        "id": image_id,
        "version": 1,
        "status": "PENDING" if content is None else "UPLOADED",
        "coverage": {"id": "a-coverage", "side": side},
        "patient": {"id": patient_id},
        **record,
    }
    image = ImageRecord.model_validate(told)
    place = place_of(image, ManifestRow(line=0, patient_id=patient_id))
    directory = archive / place.directory
    directory.mkdir(mode=0o700, exist_ok=True)
    file = None
    if content is not None:
        file = FileInfo(
            path=place.file(EXTENSIONS.get(media_type, "bin")),
            size=len(content),
            sha256=sha256(content).hexdigest(),
            media_type=media_type,
            declared_type=media_type,
        )
        (directory / file.path).write_bytes(content)
    sidecar = Sidecar(
        schema_version=1,
        image_id=image_id,
        patient_id=patient_id,
        coverage_id="a-coverage",
        version=image.version,
        status=image.status,
        deactivated=False,
        outcome=SidecarOutcome.downloaded if file else SidecarOutcome.not_uploaded,
        file=file,
        source=None,
        record=image.for_sidecar(),
        requested=Requested(patient_id=patient_id, coverage_id=None),
        manifest=manifest,
        fetched_at=datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        run_id="20260203T040500Z-abcdef",
        bulkfetch_version="0.1.0",
    )
    written = directory / place.sidecar(1)
    written.write_text(json_text(sidecar, indent=2))
    return written
