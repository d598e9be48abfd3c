"""Records as the API's JSON, with every field that the vendor's client requires."""

from __future__ import annotations

from typing import Any, TypeAlias

from bulkfetch.simulator.identifiers import Dice
from bulkfetch.simulator.population import CoverageRecord, ImageRecord, PatientRecord, Population
from bulkfetch.simulator.timestamps import DAY_MS, isoformat

__all__ = ["JsonObject", "coverage_json", "image_json", "mrn", "mrn_index", "patient_json"]

JsonObject: TypeAlias = dict[str, Any]

_MRN_DATE_DIGITS = 6
_PLANS = ("Open Choice PPO", "Everyday HMO", "Gold EPO 1500", "High Deductible 3000")


def image_json(image: ImageRecord, organization_id: str) -> JsonObject:
    """An image, all but its `signed_url`."""
    coverage = image.coverage_id and {"id": image.coverage_id, "side": image.coverage_side}
    patient = image.patient_id and {"id": image.patient_id, "notes": image.patient_notes}
    return {
        "id": image.id,
        "organization_id": organization_id,
        "deactivated": image.deactivated,
        "version": image.version,
        "updated_at": isoformat(image.updated_ms),
        "updating_user_id": image.updating_user_id,
        "display_name": image.display_name,
        "file_name": image.file_name,
        "file_type": image.file_type,
        "status": image.status,
        "coverage": coverage or None,
        "patient": patient or None,
    }


def patient_json(
    patient: PatientRecord, population: Population, organization_id: str
) -> JsonObject:
    """A patient with invented particulars."""
    dice = Dice(patient.index, "particulars", 0)
    born = isoformat(-dice.below(8_000) * DAY_MS)[:10]
    return {
        "id": patient.id,
        "mrn": mrn(patient),
        **_ownership(population.patient_state(patient), population, organization_id),
        "deactivated": patient.deactivated,
        "name": _name(patient),
        "other_names": [],
        "gender": "UNKNOWN",
        "birth_date": born,
        "biological_sex": dice.choice(("FEMALE", "MALE", "UNKNOWN")),
        "primary_address": _address(patient),
        "other_addresses": [],
        "primary_telecom": {"value": f"555-01{patient.index % 100:02d}", "use": "HOME"},
        "other_telecoms": [],
        "email": None,
        "contacts": [],
        "general_practitioners": [],
        "filing_order": {"coverages": [c.id for c in population.coverages(patient)]},
    }


def coverage_json(
    coverage: CoverageRecord, population: Population, organization_id: str
) -> JsonObject:
    """A coverage with an invented plan."""
    patient = coverage.patient
    return {
        "id": coverage.id,
        **_ownership(population.coverage_state(coverage), population, organization_id),
        "deactivated": False,
        "status": "ACTIVE" if coverage.slot < 2 else "CANCELLED",
        "subscriber": {"name": _name(patient), "biological_sex": "UNKNOWN"},
        "relationship": "SELF",
        "patient": patient.id,
        "insurance_plan": {
            "member_id": f"SIM{coverage.index:09d}",
            "payer_id": "SIM00",
            "payer_name": "Example Valley Health",
            "group_number": f"GRP-{4200 + coverage.index % 50:06d}",
            "name": _PLANS[coverage.index % len(_PLANS)],
        },
        "verified": coverage.slot == 0,
    }


def mrn(patient: PatientRecord) -> str:
    """The medical record number: a date and a running number, as the API makes them."""
    date = isoformat(patient.updated_ms)[2:10].replace("-", "")
    return f"{date}{patient.index:04d}"


def mrn_index(text: str) -> int | None:
    """The index of the patient that a record number can only belong to, or None."""
    digits = text[_MRN_DATE_DIGITS:]
    return int(digits) if digits.isascii() and digits.isdigit() else None


def _ownership(state: tuple[int, int], population: Population, organization_id: str) -> JsonObject:
    version, updated_ms = state
    return {
        "organization_id": organization_id,
        "version": version,
        "updated_at": isoformat(updated_ms),
        "updating_user_id": population.user_id,
    }


def _name(patient: PatientRecord) -> JsonObject:
    return {"family": patient.family, "given": [patient.given], "use": "USUAL"}


def _address(patient: PatientRecord) -> JsonObject:
    return {
        "use": "HOME",
        "line": [f"{patient.index} Example Street"],
        "city": "Sampleton",
        "state": "NY",
        "postal_code": "00000",
        "country": "US",
    }
