"""docs/reliability.md names tests and numbers: they are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from bulkfetch import breaker, pipeline, retry, transport
from bulkfetch.archive import KEPT_OVER_BYTES, commit, parts
from bulkfetch.pipeline import crew
from bulkfetch.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = ("docs/reliability.md", "docs/buckets.md", "SECURITY.md")


def test_every_test_that_a_page_names_exists() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    existing = set(re.findall(r"def (test_\w+)\(", tests))
    for page in PAGES:
        named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8")))
        assert named
        assert named <= existing, page


def test_the_numbers_on_the_reliability_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    fields = Settings.model_fields
    for words in (
        f"`--retries` more times ({fields['retries'].default})",
        f"double from {retry.FIRST_WAIT_S} s\nto {retry.LONGEST_WAIT_S:.0f} s",
        f"up to {retry.LONGEST_RETRY_AFTER_S:.0f} s",
        f"{retry.FIRST_RETRIES}, and {retry.RETRIES_PER_SUCCESS} more for each success",
        f"After {breaker.FAILURES_IN_A_ROW} in a row",
        f"alone for {breaker.FIRST_PAUSE_S:.0f} s",
        f"one pause ({breaker.LONGEST_PAUSE_S:.0f} s)",
        f"({fields['max_outage'].default:.0f} s; {breaker.PATIENCE_AT_FIRST_S:.0f} s if it never",
        f"`--timeout` ({fields['timeout'].default:.0f} s)",
        f"{transport.SLOWEST_BYTES_PER_S:,} bytes a second",
        f"turn at a directory | {commit.WAIT_S:.0f} s",
        f"for {crew.SILENT_AT_MOST_S} s",
        f"has {pipeline.GRACE_S:.0f} s to end",
        f"removed after {parts.KEEP_S / 86_400:.0f} days",
        f"up to {KEPT_OVER_BYTES >> 20} MiB",
    ):
        assert words in page, words
    assert transport.REDIRECTS_AT_MOST == 3
