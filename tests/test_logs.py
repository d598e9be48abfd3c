"""What never comes through to a log, and what a log line looks like."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bulkfetch.logs import HIDDEN, LogFormat, LogLevel, configure, redact

TOKEN_LETTERS = "abcXYZ0189-._~+/="
QUERY_LETTERS = TOKEN_LETTERS + "%&;:@()*!$,[]"
ANY = st.text(max_size=20)
AROUND = st.text(" \n\t.,;:()[]{}<>=&?/\"'abcxyz_-", max_size=20)


def tokens(letters: str) -> st.SearchStrategy[str]:
    """Something to be recognised by: none of the words around it is like it."""
    return st.text(letters, min_size=4, max_size=60).map(lambda text: f"Q7{text}7Q")


def jwt_part() -> st.SearchStrategy[str]:
    return st.text("abcXYZ0189-_", min_size=4, max_size=40)


FORMS = [
    "https://storage.googleapis.com/b/o?{}",
    "HTTPS://storage.googleapis.com/b/o?{}",
    "http://127.0.0.1:8080/b/o%20x?a=b&{}",
    "https://storage.googleapis.com/O'Brien.jpg?X-Goog-Date=1&X-Goog-Signature={}",
    "url='https://storage.googleapis.com/b/o?{}'",
    '"signed_url": "https://storage.googleapis.com/b/o?{}"',
    "<https://storage.googleapis.com/b/o?{}>",
]
KEYED = [
    "X-Goog-Signature={}",
    "x-goog-signature%3D{}",
    "X-Goog-Credential={}",
    "GoogleAccessId={}",
    "&Signature={}&Expires=1",
    "&Expires=1&Signature={}",
    "Authorization: Bearer {}",
    "authorization: bearer {}",
    "{{'Authorization': 'Bearer {}'}}",
    "Bearer\t{}",
    "access_token={}",
    "access_token: {}",
    "client_secret={}",
    "BULKFETCH_CLIENT_SECRET={}",
    "client_secret = {}",
]
QUOTED = [
    '{{"access_token": "{}", "expires_in": 1}}',
    '{{"access_token" : "{}"}}',
    "{{'client_secret':'{}'}}",
    '{{"client_id":"x","client_secret":"{}"}}',
    'client_secret="{}"',
]


def hidden(text: str, secret: str) -> None:
    found = redact(text)
    assert secret not in found
    assert HIDDEN in found
    # Nor most of it.
    assert secret[: max(4, len(secret) // 2)] not in found


@given(st.sampled_from(FORMS), tokens(QUERY_LETTERS), AROUND, AROUND)
def test_the_query_of_a_url_never_survives(form: str, secret: str, before: str, after: str) -> None:
    hidden(f"{before} {form.format(secret)} {after}", secret)


@given(st.sampled_from(KEYED), tokens(TOKEN_LETTERS), AROUND, AROUND)
def test_a_credential_by_its_name_never_survives(
    form: str, secret: str, before: str, after: str
) -> None:
    hidden(f"{before} {form.format(secret)} {after}", secret)


@given(st.sampled_from(QUOTED), tokens(QUERY_LETTERS + " {}|<>"), ANY)
@example('{{"client_secret":"{}"}}', "Q7a,b}c d7Q", "")
def test_a_quoted_credential_never_survives_whatever_it_holds(
    form: str, secret: str, after: str
) -> None:
    hidden(f"{form.format(secret)} {after}", secret)


@given(jwt_part(), jwt_part(), jwt_part(), ANY, ANY)
def test_a_json_web_token_never_survives_wherever_it_stands(
    head: str, claims: str, signature: str, before: str, after: str
) -> None:
    found = redact(f"{before}eyJ{head}.{claims}.{signature} {after}")
    assert f"{claims}.{signature}" not in found


@given(tokens("abcXYZ0189-._~!$&()*+,;="), tokens("abcXYZ0189-._~!$&()*+,;=:@"))
def test_a_password_in_a_url_never_survives(user: str, password: str) -> None:
    found = redact(f"proxy http://{user}:{password}@proxy.invalid:3128/ failed")
    assert user not in found
    assert password not in found
    assert "proxy.invalid:3128" in found


@given(ANY)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(f"{text} https://h.invalid/x?Signature=abcd {text}")
    assert redact(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "the storage at storage.googleapis.com refused the signed URL (HTTP 403)",
        "patient p-1: the API's /images/v1 answered HTTP 404 Not Found",
        "a new token, good for 86400 s",
        "half of the credentials is missing: set BULKFETCH_CLIENT_SECRET",
        "see https://storage.googleapis.com/bucket/object",
    ],
)
def test_words_without_a_secret_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_a_redacted_url_still_says_where() -> None:
    assert redact("at https://h.invalid/b/o?a=b now") == f"at https://h.invalid/b/o?{HIDDEN} now"


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    logger = logging.getLogger("bulkfetch")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What came to standard error since it was last asked."""
    return lambda: capsys.readouterr().err


NASTY = 'quo"te \\ new\nline \x1b[2J \r \u2028 \0 é 😀'


def test_json_lines_are_json_whatever_is_said(said: Said) -> None:
    configure(LogLevel.debug, LogFormat.json)
    log = logging.getLogger("bulkfetch.somewhere")
    log.warning("image %s", f"{NASTY}\x85\udcff")
    log.debug("at https://h.invalid/o?X-Goog-Signature=abcd")
    text = said()
    assert text.isascii()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "debug"]
    assert lines[0]["message"] == f"image {NASTY}\x85\udcff"
    assert set(lines[0]) == {"at", "level", "logger", "message"}
    assert lines[0]["logger"] == "bulkfetch.somewhere"
    assert "abcd" not in text


def test_text_lines_are_one_line_each_and_move_no_cursor(said: Said) -> None:
    configure(LogLevel.info, LogFormat.text)
    log = logging.getLogger("bulkfetch.somewhere")
    log.info("image %s", "a\nerror: forged\x1b[2J\r\x9b1m\u2028é😀")
    log.error("Bearer abcd")
    assert said() == (
        "info: image a\\nerror: forged\\x1b[2J\\r\\x9b1m\\u2028é😀\n"
        f"error: Bearer {HIDDEN}\n"
    )  # fmt: skip


@pytest.mark.parametrize("level", list(LogLevel))
def test_a_level_takes_in_those_after_it(said: Said, level: LogLevel) -> None:
    configure(level, LogFormat.text)
    for each in LogLevel:
        logging.getLogger("bulkfetch.x").log(logging.getLevelName(each.upper()), "here")
    levels = list(LogLevel)
    assert said().split("\n")[:-1] == [f"{each}: here" for each in levels[levels.index(level) :]]


def test_configuring_twice_says_nothing_twice(said: Said) -> None:
    configure(LogLevel.info, LogFormat.text)
    configure(LogLevel.info, LogFormat.text)
    logging.getLogger("bulkfetch.x").info("once")
    assert said() == "info: once\n"
