"""What a simulator is told when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bulkfetch.simulator.faults import Fault

__all__ = ["DEMO_CLIENT_ID", "DEMO_CLIENT_SECRET", "MOST_IMAGES", "SimulatorConfig"]

DEMO_CLIENT_ID = "simulator-demo-client"
DEMO_CLIENT_SECRET = "simulator-demo-secret"  # noqa: S105 - opens nothing but a simulator
"""The pair that the simulator accepts unless told otherwise; public on purpose."""

MOST_IMAGES = 8
"""Images that one patient can have in a search by patient ID, from the seeded population."""

_SEED_ORGANIZATION = "5c1d0a3e-51a7-4e0d-9b0c-000000000001"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """Options of a simulator; equal options make equal populations, bytes and faults.

    Raises ValueError for options that cannot be.
    """

    seed: int = 1
    patients: int = 200
    images_per_patient: int = 3
    """Mean number; from 0 to 8 are drawn for each patient, and some have none."""
    patients_per_instant: int | None = None
    """Patients that share one `updated_at`; None for groups of mixed sizes, most of them of one."""
    organization_id: str = _SEED_ORGANIZATION

    host: str = "127.0.0.1"
    port: int = 0
    """Port of API and authentication; storage takes the next one. 0: any two free ports."""

    client_id: str = DEMO_CLIENT_ID
    client_secret: str = DEMO_CLIENT_SECRET
    static_token: str | None = None
    """A bearer token that is accepted besides those that the token endpoint issues."""
    token_lifetime_s: float = 18_000
    url_lifetime_s: float = 900
    """Seconds that a signed URL is good for; rounded to whole ones, at least 1."""
    url_style: Literal["v4", "v2"] = "v4"

    api_latency_s: float = 0
    storage_latency_s: float = 0
    rate_limit: float | None = None
    """API requests a second, with a burst of one second's worth; above it 429 with Retry-After."""
    faults: tuple[Fault, ...] = ()
    fixed_bytes: int | None = None
    """Pads objects to about so many bytes; those that are larger as drawn stay so."""
    extra_fields: bool = False
    """Adds fields to image records that the API's reference does not name."""
    record_requests: bool = False
    """Keeps a record of every request in `Simulator.log`, which grows without bound."""

    def __post_init__(self) -> None:
        if self.patients < 0:
            raise ValueError(f"patients must not be negative, but is {self.patients}")
        if not 0 <= self.images_per_patient <= MOST_IMAGES:
            raise ValueError(
                f"images_per_patient must be from 0 to {MOST_IMAGES}, "
                f"but is {self.images_per_patient}"
            )
        if self.patients_per_instant is not None and self.patients_per_instant < 1:
            raise ValueError("patients_per_instant must be at least 1")
        if not 0 <= self.port < 65535:
            raise ValueError(f"port must be from 0 to 65534, but is {self.port}")
        if self.rate_limit is not None and self.rate_limit <= 0:
            raise ValueError("rate_limit must be more than 0")
