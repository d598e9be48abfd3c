"""`bag-info.txt`: what an institution asks of a bag it is given (RFC 8493, section 2.2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from bulkfetch._version import __version__
from bulkfetch.archive import Identity
from bulkfetch.bag.contents import Contents
from bulkfetch.logs import plain
from bulkfetch.progress import size_text
from bulkfetch.verification import Report
from bulkfetch.words import counted

_OURS = "Bulkfetch-"
_COMPUTED = {"bag-software-agent", "bagging-date", "payload-oxum", "bag-size"}
_DESCRIPTION = "External-Description"
_RUN = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class Label(NamedTuple):
    """A line of `bag-info.txt`."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


def parse_label(text: str) -> Label:
    """Read `Name: value`.

    Raises:
        ValueError: it is no one line of that form, or says what bulkfetch finds out itself.
    """
    name, colon, value = text.partition(":")
    label = Label(name.strip(), value.strip())
    if not (colon and all(label)):
        raise ValueError("must be 'Name: value', such as 'Source-Organization: An Archive'")
    if not text.isprintable():
        raise ValueError("must be one line, without control characters")
    if label.name.lower() in _COMPUTED or label.name.lower().startswith(_OURS.lower()):
        raise ValueError(f"has {label.name}, which bulkfetch finds out itself: leave it out")
    return label


def bag_info(
    given: Sequence[Label],
    identity: Identity,
    runs: Sequence[str],
    verified: Report,
    contents: Contents,
) -> Iterator[str]:
    """Yield the lines: what was given, then what is true of the bag and of the archive."""
    payload, tags = contents.sums(is_payload=True), contents.sums(is_payload=False)
    images, patients = verified.files, contents.patients()
    labels = list(given)
    if not any(label.name.lower() == _DESCRIPTION.lower() for label in given):
        what = "Images of insurance cards and the records about them, as exported from the "
        told = f"pre-encounter API of {identity.api_host}: "
        sums = f"{counted(images, 'image')}, {counted(patients, 'patient')}"
        labels.append(Label(_DESCRIPTION, what + told + sums))
    labels += [
        Label("Bagging-Date", f"{datetime.now(UTC):%Y-%m-%d}"),
        Label("Bag-Software-Agent", f"bulkfetch {__version__}"),
        Label("Bag-Size", size_text(payload.bytes + tags.bytes)),
        Label("Payload-Oxum", f"{payload.bytes}.{payload.files}"),
        Label(f"{_OURS}API-Host", identity.api_host),
        Label(f"{_OURS}Organization", identity.organization_id or "not told by any record"),
        Label(f"{_OURS}Images", f"{images}"),
        Label(f"{_OURS}Sidecars", f"{verified.sidecars}"),
        Label(f"{_OURS}Patients", f"{patients}"),
        Label(f"{_OURS}Runs", f"{verified.runs}"),
    ]
    if runs:
        labels.append(Label(f"{_OURS}First-Run", _run(runs[0])))
        labels.append(Label(f"{_OURS}Last-Run", _run(runs[-1])))
    yield from (plain(str(label)) for label in labels)


def _run(run_id: str) -> str:
    """Name a run, and when it began, which its ID says."""
    if not (found := _RUN.match(run_id)):
        return run_id
    began = datetime.strptime(found[0], "%Y%m%dT%H%M%S%z")
    return f"{run_id}, begun {began:%Y-%m-%dT%H:%M:%SZ}"
