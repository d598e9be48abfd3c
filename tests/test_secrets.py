"""What a faulty run writes and shows holds no credential and nothing about a person."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bulkfetch.simulator import Simulator, parse_fault
from tests.conftest import Serve, credentials, write_manifest
from tests.faulty import listed

DISPLAY, FILE, NOTE = "Zebrafinch Displayname", "zebrafinch-file.jpg", "Zebrafinch note, 1970-01-01"
# Words of what servers send that is no image: pages, errors, and the path of a redirect.
SERVERS_WORDS = (
    "Sign in", "session has expired", "InternalError", "internal error", "ExpiredToken",
    "Invalid argument", "upstream connect", "TooManyRequests", "NoSuchKey", "errorName",
    "InvalidRange", "zebrafinch-redirect", "Zebrafinch",
)  # fmt: skip
FAULTS = (
    "storage:503@8%", "storage:html@5%", "storage:xml@5%", "storage:expired@8%", "storage:404@3%",
    "storage:short@5%", "storage:drop=100@5%", "storage:429=0@5%", "storage:corrupt@5%",
    "storage:redirect=https://stranger.invalid/zebrafinch-redirect?X-Goog-Signature=0badc0de@3%",
    "images:503@5%", "images:html@5%", "images:bad-json@5%", "images:wrong-shape@3%",
    "images:truncated-json@5%", "image:404@3%", "image:500@8%", "coverages:token-death@5%",
    "coverages:wrong-shape@3%", "token:html@20%",
)  # fmt: skip


@pytest.fixture
def simulator(serve: Serve) -> Simulator:
    """A simulator with a name and a note on every image, some images of an impossible shape."""
    simulator = serve(patients=60)
    for number, (image_id, _) in enumerate(listed(simulator)):
        fields = {
            "display_name": f"{DISPLAY} {number}",
            "file_name": FILE,
            "patient": {"id": f"p-{number}", "notes": NOTE},
        }
        if number % 40 == 0:
            fields |= {"version": f"{DISPLAY} in a number"}
        elif number % 40 == 1:
            fields |= {"patient": {"id": [NOTE], NOTE: {NOTE: NOTE}}}
        elif number % 40 == 2:
            fields |= {"updated_at": NOTE}
        elif number % 40 == 3:
            fields |= {"signed_url": f"https://stranger.invalid/{FILE}?X-Goog-Signature=0badc0de"}
        elif number % 40 == 4:
            fields |= {"signed_url": f"https://u:0badc0de@stranger.invalid/?Signature={NOTE}"}
        simulator.patch_image(image_id, **fields)
    simulator.faults.add(*map(parse_fault, FAULTS))
    return simulator


def through_a_terminal(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run the command with a terminal for its output, and return its status and all it showed."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "bulkfetch", *arguments],
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        env={**os.environ, **environment, "COLUMNS": "200", "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        while True:
            try:
                data = os.read(ours, 2**16)
            except OSError:
                # What Linux answers once the other end is closed.
                break
            if not data:
                break
            shown += data
    os.close(ours)
    return process.returncode, shown.decode("utf-8", "replace")


def leaks(text: str, simulator: Simulator) -> set[str]:
    """The secrets and private words that a text holds."""
    secrets = {
        simulator.config.client_secret, "eyJ", "Signature=", "X-Goog-Credential", "0badc0de",
        "Bearer ", '"signed_url":"', '"signed_url": "', *SERVERS_WORDS,
    }  # fmt: skip
    found = {secret for secret in secrets if secret.lower() in text.lower()}
    # A signature is the one thing that is a long row of hex digits, an ID's or a hash's aside.
    return found | set(re.findall(r"[0-9a-f]{128,}", text))


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_secret_or_private_is_shown_or_written_by_a_faulty_run(
    simulator: Simulator, tmp_path: Path, form: str
) -> None:
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    arguments = [
        "download", str(manifest), "--out", str(archive), "--json", "--include-coverages",
        "--retries=3", "--log-level=debug", f"--log-format={form}", "--progress=bar",
    ]  # fmt: skip
    status, shown = through_a_terminal(arguments, credentials(simulator))
    assert status == 1, shown
    assert "Traceback" not in shown
    assert "trying again" in shown
    # It was there to be leaked: the sidecars hold it.
    kept = [path.read_text(encoding="utf-8") for path in archive.glob("[!.]*/*.json")]
    assert any(DISPLAY in text and FILE in text and NOTE in text for text in kept)
    assert not any("signed_url" in text or "0badc0de" in text for text in kept)

    assert not leaks(shown, simulator)
    written = [path for path in archive.glob(".bulkfetch/**/*") if path.is_file()]
    assert {"journal.jsonl", "failures.csv", "summary.json"} <= {path.name for path in written}
    for path in written:
        assert not leaks(path.read_text(encoding="utf-8"), simulator), path
    assert not [path for path in archive.rglob("*") if "zebrafinch" in path.name.lower()]


def test_a_terminal_is_not_steered_by_what_a_server_says(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=3)
    for image_id, _ in listed(simulator):
        simulator.patch_image(
            image_id, id=f"\x1b[2J\r\n{image_id}", status="\x1b]0;x\x07", version="\x1b[31m"
        )
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    arguments = ["download", str(manifest), "--out", str(tmp_path / "a"), "--log-level=debug"]
    _, shown = through_a_terminal([*arguments, "--progress=none"], credentials(simulator))
    assert "\x1b" not in shown
    assert "\x07" not in shown
