"""Where a setting comes from, which are refused, and that no secret is ever shown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from bulkfetch.cli.options import DownloadSettings
from bulkfetch.errors import ConfigurationError
from bulkfetch.models import Shard
from bulkfetch.settings import (
    Address,
    ClientCredentials,
    Environment,
    Option,
    Settings,
    StaticToken,
    is_loopback,
    load,
)
from tests.conftest import bulkfetch

SECRET = "s3cr3t-hunter2"


def options() -> dict[str, FieldInfo]:
    """The fields that are options, by the key that users write."""
    return {
        field.alias or name: field
        for name, field in DownloadSettings.model_fields.items()
        if any(isinstance(data, Option) for data in field.metadata)
    }


def name_of(key: str) -> str:
    return next(n for n, f in DownloadSettings.model_fields.items() if (f.alias or n) == key)


def variable(key: str) -> str:
    return f"BULKFETCH_{key.upper()}"


def read(key: str, given: Mapping[str, Any]) -> Any:
    return getattr(load(DownloadSettings, {"out": "unused", **given}), name_of(key))


# Of these, every option takes at least two.
WORDS = ["true", "false", "7", "8", "https://a.invalid", "https://b.invalid", "2026-01-02",
         "2026-01-03", "staging", "local", "csv", "tsv", "plain", "none", "error", "debug",
         "json", "text", "a.invalid", "b.invalid", "1/3", "2/3", "ray",
         "a/{image_id}.v{version}", "b/{image_id}.v{version}", "a.prom", "b.prom"]  # fmt: skip


def samples(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two texts that an option takes, neither of which means its default."""
    if key == "config":
        for name in ("one.toml", "two.toml"):
            (tmp_path / name).touch()
        return [str(tmp_path / "one.toml"), str(tmp_path / "two.toml")]
    default = options()[key].get_default()
    found: dict[str, str] = {}
    for word in WORDS:
        with monkeypatch.context() as patch:
            patch.setenv(variable(key), word)
            try:
                value = read(key, {"out": word} if key == "out" else {})
            except ConfigurationError:
                continue
        if value != default:
            found.setdefault(repr(value), word)
    return list(found.values())[:2]


def toml(value: object) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, tuple) and not isinstance(value, Shard | Address):
        return json.dumps([str(part) for part in value])
    return json.dumps(str(value))


@pytest.mark.parametrize("key", [key for key in options() if key != "out"])
def test_every_option_has_its_twins_and_the_nearer_one_wins(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = samples(key, tmp_path, monkeypatch)
    default = options()[key].get_default()
    # What can be one of two things has but one that is not its default.
    other = "false" if options()[key].annotation is bool else str(default)
    near, far = texts if len(texts) == 2 else (*texts, other)
    assert read(key, {}) == default
    assert read(key, {key: far}) != read(key, {key: near})

    if key != "config":  # which says where the file is
        config = tmp_path / "bulkfetch.toml"
        config.write_text(f"{key} = {toml(read(key, {key: near}))}\n", encoding="utf-8")
        assert read(key, {"config": str(config)}) == read(key, {key: near}) != default
        monkeypatch.setenv(variable(key), far)
        assert read(key, {"config": str(config)}) == read(key, {key: far})
    monkeypatch.setenv(variable(key), far)
    assert read(key, {}) == read(key, {key: far})
    assert read(key, {key: near}) == read(key, {key: near}) != read(key, {key: far})
    monkeypatch.setenv(variable(key), near)
    assert read(key, {key: far}) != read(key, {})


def test_out_comes_from_the_nearest_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "bulkfetch.toml"
    config.write_text('out = "of the file"\n', encoding="utf-8")
    assert load(Settings, {"config": config}).out == "of the file"
    monkeypatch.setenv("BULKFETCH_CONFIG", str(config))
    assert load(Settings, {}).out == "of the file"
    monkeypatch.setenv("BULKFETCH_OUT", "of the environment")
    assert load(Settings, {}).out == "of the environment"
    assert load(Settings, {"out": "given"}).out == "given"


def test_help_shows_the_options_that_are_fields_and_no_secret() -> None:
    text = bulkfetch("download", "--help").out
    shown = set(re.findall(r"^  (?:-\w(?: \w+)?, )?--([a-z-]+)", text, re.MULTILINE)) - {"help"}
    assert shown == {key.replace("_", "-") for key in options()}
    for secret in ("token", "client_secret", "client_id", "token_file", "client_secret_file"):
        assert secret in DownloadSettings.model_fields
        assert secret not in options()


def test_lists_are_separated_by_commas_in_the_environment_and_may_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BULKFETCH_SIDE", " FRONT, BACK ,,")
    assert Settings(out="x").side == ("FRONT", "BACK")
    assert load(Settings, {"out": "x", "side": ["A,B", "C"]}).side == ("A", "B", "C")
    monkeypatch.setenv("BULKFETCH_SIDE", "")
    assert Settings(out="x").side == ()


def test_a_time_without_a_zone_is_in_utc() -> None:
    for text in ("2026-01-02", "2026-01-02T00:00:00", "2026-01-02T01:00:00+01:00"):
        since = load(Settings, {"out": "x", "updated_since": text}).updated_since
        assert since == datetime(2026, 1, 2, tzinfo=UTC)


SECRETS = {"token": SECRET, "client_secret": SECRET}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_never_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(name), SECRET)
    if name == "client_secret":
        monkeypatch.setenv("BULKFETCH_CLIENT_ID", "client")
    settings = Settings(out="x")
    credentials = settings.credentials()
    for text in (
        repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json(),
        repr(credentials), str(credentials),
    ):  # fmt: skip
        assert SECRET not in text
    shown = credentials.token if isinstance(credentials, StaticToken) else credentials.client_secret
    assert shown.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": SECRET, "client_secret": SECRET},
        {"token": SECRET, "client_id": "x"},
        {"token": SECRET, "retries": -1},
        {"token": SECRET, "token_file": "x"},
        {"client_secret": SECRET, "client_secret_file": "x"},
        {"token": [SECRET]},
        {"client_secret": {"a": SECRET}},
        {"tokne": SECRET},
        {"api_url": f"https://user:{SECRET}@api.invalid"},
        {"api_url": f"http://user:{SECRET}@api.invalid"},
        {"auth_url": f"https://{SECRET}@api.invalid"},
    ],
    ids=str,
)
def test_no_refusal_repeats_a_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**{"out": "x", **wrong})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    with pytest.raises(ConfigurationError) as ours:
        load(Settings, {"out": "x", **wrong})
    assert SECRET not in str(ours.value)


@pytest.mark.parametrize("key", ["token", "client_secret"])
def test_a_secret_in_the_file_is_refused_without_repeating_it(tmp_path: Path, key: str) -> None:
    config = tmp_path / "bulkfetch.toml"
    config.write_text(f'{key} = "{SECRET}"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=key) as caught:
        load(Settings, {"out": "x", "config": config})
    assert SECRET not in str(caught.value)


HOST_CASES = [
    ("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
    ("localhost.", False), ("localhost.evil.invalid", False), ("127.0.0.1.evil.invalid", False),
    ("127.1", False), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("", False),
    ("169.254.169.254", False), (None, False),
]  # fmt: skip


@pytest.mark.parametrize(("host", "loopback"), HOST_CASES)
def test_loopback_is_this_machine_itself(host: str | None, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("name", ["api_url", "auth_url"])
@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://api.invalid", "https://api.invalid"),
        ("https://api.invalid/", "https://api.invalid"),
        ("https://api.invalid:8443/base/", "https://api.invalid:8443/base"),
        ("http://localhost:4000", "http://localhost:4000"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("HTTPS://API.invalid", "HTTPS://API.invalid"),
        ("http://api.invalid", None),
        ("http://localhost.evil.invalid", None),
        ("http://127.0.0.1.evil.invalid", None),
        ("http://127.0.0.1@evil.invalid", None),
        ("http://127.0.0.1\\@evil.invalid", None),
        ("http://evil.invalid#@127.0.0.1", None),
        ("http://0.0.0.0", None),
        ("https://user@api.invalid", None),
        ("https://user:pw@api.invalid", None),
        ("https://api.invalid?x=1", None),
        ("https://api.invalid#x", None),
        ("https://api.invalid:99999", None),
        ("https://api.invalid:port", None),
        ("https://api.invalid\n", None),
        ("https://a b.invalid", None),
        ("https://api.invalid/a b", None),
        ("https://\ud800", None),
        ("https://[::1", None),
        ("https://", None),
        ("https:///path", None),
        ("//api.invalid", None),
        ("api.invalid", None),
        ("ftp://api.invalid", None),
        ("file:///etc/passwd", None),
        ("", None),
    ],
)
def test_a_base_url_is_https_or_loopback_and_nothing_but_a_host_and_a_path(
    name: str, url: str, kept: str | None
) -> None:
    given = {"out": "x", name: url}
    if kept is None:
        with pytest.raises(ConfigurationError, match=f"--{name.replace('_', '-')}"):
            load(Settings, given)
    else:
        assert getattr(load(Settings, given), name) == kept


def test_the_auth_api_is_the_environments_or_that_of_the_api_that_was_given() -> None:
    for environment in Environment:
        settings = Settings(out="x", environment=environment)
        assert settings.api_base_url != settings.auth_base_url
        assert settings.auth_base_url.startswith(("https://", "http://localhost"))
    only_api = Settings(out="x", api_url="https://a.invalid")
    assert only_api.api_base_url == only_api.auth_base_url == "https://a.invalid"
    both = Settings(out="x", api_url="https://a.invalid", auth_url="https://b.invalid")
    assert (both.api_base_url, both.auth_base_url) == ("https://a.invalid", "https://b.invalid")
    only_auth = Settings(out="x", auth_url="https://b.invalid", environment=Environment.staging)
    assert only_auth.api_base_url == "https://pre-api-staging.joincandidhealth.com"
    assert only_auth.auth_base_url == "https://b.invalid"


@pytest.mark.parametrize(
    "host", ["https://a.invalid", "a.invalid/x", "a.invalid:443", "*.invalid", "a b", "u@a.invalid"]
)
def test_a_storage_host_is_a_name_alone(host: str) -> None:
    with pytest.raises(ConfigurationError, match="--storage-host"):
        load(Settings, {"out": "x", "storage_host": [host]})
    assert load(Settings, {"out": "x", "storage_host": ["A.invalid"]}).storage_host == (
        "a.invalid",
    )


@pytest.mark.parametrize("kind", ["token", "client_secret"])
@pytest.mark.parametrize(
    "content",
    [b"%s", b"%s\n", b"%s\r\n", b"  %s \n\n", b"\xef\xbb\xbf%s\r\n", b"\n%s"],
)
def test_a_secret_file_holds_one_line_however_it_ends(
    tmp_path: Path, kind: str, content: bytes
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content % SECRET.encode())
    if kind == "token":
        assert Settings(out="x", token_file=path).credentials() == StaticToken(SecretStr(SECRET))
    else:
        settings = Settings(out="x", client_id="client", client_secret_file=path)
        assert settings.credentials() == ClientCredentials("client", SecretStr(SECRET))


@pytest.mark.parametrize("kind", ["token", "client_secret"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b" \r\n\n", "empty"),
        (b"s3cr3t-hunter2\nanother\n", "more than one line"),
        (b"s3cr3t-hunter2\r\nanother", "more than one line"),
        (b"s3cr3t\0hunter2", "more than one line"),
        (b"\xff\xfes3cr3t-hunter2", "not text"),
        ("directory", "directory"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_named_with_its_variable(
    tmp_path: Path, kind: str, content: bytes | str | None, reason: str
) -> None:
    path = tmp_path / "secret"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    fields: dict[str, Any] = {"out": "x", f"{kind}_file": path}
    if kind == "client_secret":
        fields["client_id"] = "client"
    with pytest.raises(ConfigurationError) as caught:
        Settings(**fields).credentials()
    for word in (reason, str(path), f"BULKFETCH_{kind.upper()}_FILE"):
        assert word in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["BULKFETCH_TOKEN", "BULKFETCH_CLIENT_SECRET"])
def test_a_secret_in_the_environment_is_one_line_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "BULKFETCH_CLIENT_SECRET":
        monkeypatch.setenv("BULKFETCH_CLIENT_ID", "client")
    monkeypatch.setenv(name, f"{SECRET}\r\n")
    assert _secret(Settings(out="x")) == SECRET
    for wrong in (f"{SECRET}\nX-Evil: 1", "  "):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(ConfigurationError, match=name) as caught:
            Settings(out="x").credentials()
        assert SECRET not in str(caught.value)


def _secret(settings: Settings) -> str:
    credentials = settings.credentials()
    if isinstance(credentials, StaticToken):
        return credentials.token.get_secret_value()
    return credentials.client_secret.get_secret_value()


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, "BULKFETCH_TOKEN"),
        ({"client_id": "x"}, "BULKFETCH_CLIENT_SECRET"),
        ({"client_secret": SECRET}, "BULKFETCH_CLIENT_ID"),
    ],
)
def test_credentials_that_are_not_whole_are_refused_by_the_missing_name(
    fields: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        Settings(**{"out": "x", **fields}).credentials()


@hypothesis.given(st.text(max_size=30) | st.from_regex(r"https?://[\w.@:\\\[\]/#?%-]{0,30}"))
def test_no_text_for_a_url_is_anything_but_taken_or_refused(text: str) -> None:
    try:
        settings = load(Settings, {"out": "x", "api_url": text})
    except ConfigurationError:
        return
    assert settings.api_url is not None
    assert settings.api_url.isprintable()
    assert " " not in settings.api_url


@pytest.mark.parametrize(
    ("given", "meant"),
    [({"side": "fornt"}, "FRONT"), ({"status": "UPLODED,FAILED"}, "UPLOADED")],
)
def test_a_filter_that_is_nearly_a_word_of_the_api_is_refused(
    given: dict[str, str], meant: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"\({meant}\?\)"):
        load(Settings, {"out": "x", **given})


def test_a_declared_type_that_is_no_media_type_takes_a_pattern() -> None:
    with pytest.raises(ConfigurationError, match=r"such as image/jpeg.* or '\*jpg\*' for"):
        load(Settings, {"out": "x", "file_type": "image/png,jpg"})
    assert load(Settings, {"out": "x", "file_type": "*jpg*"}).file_type == ("*jpg*",)


def test_a_filter_may_be_a_word_that_the_api_has_not_had_so_far() -> None:
    settings = load(Settings, {"out": "x", "side": "front,INSIDE", "status": "ARCHIVED"})
    assert settings.side == ("front", "INSIDE")
    assert settings.status == ("ARCHIVED",)


@pytest.mark.parametrize(
    ("given", "plainly"),
    [
        ({"query_concurrency": "many"}, "must be a whole number, not 'many'"),
        ({"timeout": "long"}, "must be a number, not 'long'"),
        ({"max_file_size": "50XB"}, "must be a size such as 50MB, not '50XB'"),
        ({"updated_since": "yesterday"}, "must be a time such as 2026-11-01"),
        ({"out": ""}, "must not be empty"),
    ],
)
def test_what_a_value_must_be_is_said_plainly(given: dict[str, str], plainly: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(plainly)):
        load(Settings, {"out": "x", **given})
