"""What people are told is in the right number, and guesses at what was meant are good ones."""

from __future__ import annotations

import pytest

from bulkfetch.words import counted, did_you_mean


@pytest.mark.parametrize(
    ("number", "thing", "told"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1234, "bad row", "1,234 bad rows"),
        (1, "query", "1 query"),
        (2, "query", "2 queries"),
        (2, "address", "2 addresses"),
        (2, "day", "2 days"),
    ],
)
def test_one_is_singular_and_all_else_plural(number: int, thing: str, told: str) -> None:
    assert counted(number, thing) == told


def test_the_likeliest_name_is_told_for_each_word_that_is_like_one() -> None:
    names = ["retries", "timeout", "token"]
    assert did_you_mean(names, "retires", "xyzzy", "timout") == "; did you mean retries, timeout?"


def test_nothing_is_told_where_no_name_is_like_it() -> None:
    assert did_you_mean(["--json", "--out"], "--token") == ""
