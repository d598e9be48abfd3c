"""The hosts that the vendor names, and this machine itself; and what does the work."""

from __future__ import annotations

import ipaddress
from enum import StrEnum

# The storage behind signed URLs: https://cloud.google.com/storage/docs/request-endpoints.
# A leading dot stands for the subdomains, which are buckets.
GOOGLE_STORAGE_HOSTS = ("storage.googleapis.com", ".storage.googleapis.com")


class EngineName(StrEnum):
    """What starts a run's processes: this machine, or a cluster of Ray's."""

    local = "local"
    ray = "ray"


class Environment(StrEnum):
    """The vendor's deployments, by the names that its own client gives them."""

    production = "production"
    staging = "staging"
    candid_sandbox = "candid-sandbox"
    candid_staging = "candid-staging"
    local = "local"


# (pre-encounter API, auth API): from the vendor's client, `candidhealth` 1.37.0.
HOSTS = {
    Environment.production: (
        "https://pre-api.joincandidhealth.com",
        "https://api.joincandidhealth.com",
    ),
    Environment.staging: (
        "https://pre-api-staging.joincandidhealth.com",
        "https://api-staging.joincandidhealth.com",
    ),
    Environment.candid_sandbox: (
        "https://sandbox-pre-api.joincandidhealth.com",
        "https://sandbox-api.joincandidhealth.com",
    ),
    Environment.candid_staging: (
        "https://staging-pre-api.joincandidhealth.com",
        "https://staging-api.joincandidhealth.com",
    ),
    Environment.local: ("http://localhost:4000", "http://localhost:5050"),
}


def is_loopback(host: str | None) -> bool:
    """Tell whether a URL's host is this machine itself, by name or address."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
