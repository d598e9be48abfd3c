"""What to do about each kind of failure, by the stable word that journals and summaries have."""

from __future__ import annotations

_AGAIN = "run the same command again"

ADVICE = {
    "bad_body": f"{_AGAIN}; where it fails each time, the stored file is damaged: tell Candid "
    "Health the image's ID",
    "bad_response": "see whether a proxy or a login page answers in the API's place; "
    "bulkfetch doctor tells",
    "connection": f"check network, DNS and proxy with bulkfetch doctor; then {_AGAIN}",
    "destination": f"see to the object store: access, quota, its own status; then {_AGAIN}",
    "failed": f"{_AGAIN} with --log-level info, which says why",
    "host_denied": "if that storage host is to be trusted, name it with --storage-host",
    "moved": f"{_AGAIN}: the record changed again and again while it was fetched",
    "path_refused": "move away what lies in the archive where a directory belongs",
    "process_died": f"{_AGAIN} with fewer --processes: memory was short, most likely",
    "service_down": f"wait until the service is well again, then {_AGAIN}; --max-outage waits "
    "longer",
    "signed_url": "check the clock of this machine with bulkfetch doctor; "
    f"then {_AGAIN}: the URLs are made anew",
    "status": "404: the ID is not known; 403: ask for the right to read images; 429 and 5xx: "
    f"lower --query-concurrency or --rate-limit, then {_AGAIN}",
    "taken": f"{_AGAIN}: another row or shard was at work on the same image",
    "timeout": f"raise --timeout or lower --download-concurrency, then {_AGAIN}",
    "too_large": "raise --max-file-size if so large a file is to be fetched",
    "type_mismatch": "leave out --strict-type, or have the type corrected at its source",
    "unknown_account": "use credentials of the archive's own organization",
}
