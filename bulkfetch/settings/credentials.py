"""What bulkfetch signs in with, and secrets read from where they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from bulkfetch.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class StaticToken:
    """A bearer token that somebody else renews."""

    token: SecretStr


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What the token endpoint takes for a token."""

    client_id: str
    client_secret: SecretStr


def read_secret(path: Path, variable: str) -> SecretStr:
    """Return the one line of a file that a variable names.

    Raises:
        ConfigurationError: it cannot be read, or is not one line of text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(f"{variable}: {path} cannot be read: {reason}") from error
    return one_line(text, f"{variable}: {path}")


def one_line(text: str, where: str) -> SecretStr:
    """Return a secret without the white space around it; `where` it came from is for the error.

    Raises:
        ConfigurationError: it is empty, or more than one line.
    """
    text = text.strip()
    if not text or not text.isprintable():
        raise ConfigurationError(f"{where} is empty or holds more than one line")
    return SecretStr(text)
