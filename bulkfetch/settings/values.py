"""The forms that an option's value may have: each says in plain words what it must be."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode
from yarl import URL

from bulkfetch.models import UPLOADED, Shard
from bulkfetch.paths import parse_template
from bulkfetch.settings.hosts import is_loopback


def _base_url(text: str) -> str:
    # Parsed by what will send to it, so that both see the same host.
    try:
        parts = URL(text)
        plain = bool(parts.host) and text.isprintable() and " " not in text
    except (ValueError, IndexError):  # the second of brackets in odd places
        plain = False
    if not plain or parts.scheme not in ("http", "https"):
        raise ValueError("must be a URL such as https://pre-api.joincandidhealth.com")
    if parts.scheme == "http" and not is_loopback(parts.host):
        raise ValueError("must be https: a token is never sent in the clear")
    if "@" in parts.raw_authority or parts.query_string or parts.raw_fragment:
        raise ValueError("must be a host and at most a path: no user, query or fragment")
    return text.rstrip("/")


def _split(value: object) -> object:
    """Take `a,b` where a list is meant, as an environment variable has to write it."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        return [part.strip() for item in value for part in str(item).split(",") if part.strip()]
    return value


@dataclass(frozen=True, slots=True)
class Known:
    """Refuses what is nearly one of the names that the API has; it may add others at any time."""

    names: tuple[str, ...]

    def __call__(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return the words."""
        for word in words:
            meant = difflib.get_close_matches(word.upper(), self.names, 1)
            if meant and word.upper() not in self.names:
                raise ValueError(f"must be as the API says it ({meant[0]}?)")
        return words


def _declared_type(text: str) -> str:
    if not any(sign in text for sign in "/*?"):
        raise ValueError(
            "must be a media type such as image/jpeg, or a pattern such as 'image/*', "
            f"or '*{text}*' for images that are declared in other words"
        )
    return text


def _host_name(text: str) -> str:
    if not text or any(sign in text for sign in "/:@?#* "):
        raise ValueError("must be a host name alone, such as storage.example.org")
    return text.lower()


def _no_number(value: object) -> object:
    """Refuse `20261101`, which would be read as seconds since 1970."""
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdigit()):
        raise ValueError("must be a time such as 2026-11-01 or 2026-11-01T12:00:00Z")
    return value


def path_text(value: object) -> object:
    """Take a path object, and `~` for the home directory as a shell does."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and text.startswith("~"):
        return str(Path(text).expanduser())
    return text


def _in_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _path_template(text: str) -> str:
    parse_template(text)
    return text


def _shard(value: object) -> object:
    return value if value is None or isinstance(value, Shard) else Shard.parse(str(value))


class Address(NamedTuple):
    """Where to listen; port 0 is any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def _address(value: object) -> object:
    """Take a port alone, which is one of loopback, or a host before it."""
    if value is None or isinstance(value, Address):
        return value
    host, _, port = str(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isdecimal() or int(port) >= 2**16:
        raise ValueError("must be a port such as 9464, or HOST:PORT")
    return Address(host, int(port))


def _prom_file(path: Path) -> Path:
    # Else what is replaced may be a manifest, or a device.
    if path.suffix != ".prom":
        raise ValueError("must end in .prom: node_exporter reads no other file")
    return path


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be one line of text")
    return text


Line = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
BaseURL = Annotated[str, AfterValidator(_base_url)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
HostNames = Annotated[
    tuple[Annotated[str, AfterValidator(_host_name)], ...], NoDecode, BeforeValidator(_split)
]
FileTypes = Annotated[
    tuple[Annotated[str, AfterValidator(_declared_type)], ...], NoDecode, BeforeValidator(_split)
]
PathText = Annotated[str, BeforeValidator(path_text), Field(min_length=1)]
Sides = Annotated[Words, AfterValidator(Known(("FRONT", "BACK")))]
Statuses = Annotated[Words, AfterValidator(Known((UPLOADED, "PENDING", "FAILED")))]
PathTemplate = Annotated[str, AfterValidator(_path_template)]
PromFile = Annotated[Path, BeforeValidator(path_text), AfterValidator(_prom_file)]
Listening = Annotated[Address | None, NoDecode, BeforeValidator(_address)]
Share = Annotated[Shard | None, NoDecode, BeforeValidator(_shard)]
Moment = Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]
