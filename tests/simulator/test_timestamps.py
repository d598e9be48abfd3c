from __future__ import annotations

import pytest

from bulkfetch.simulator.timestamps import isoformat, milliseconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T00:00:00.123456Z", 124),
        ("1970-01-01T00:00:00.123Z", 123),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:01", 1000),
        ("1970-01-02", 86_400_000),
    ],
)
def test_a_time_is_read_to_the_millisecond_and_rounded_up(text: str, expected: int) -> None:
    assert milliseconds(text) == expected


def test_a_time_is_written_in_utc_with_three_digits() -> None:
    assert isoformat(1_700_000_000_007) == "2023-11-14T22:13:20.007Z"
    assert milliseconds(isoformat(1_700_000_000_007)) == 1_700_000_000_007
