"""The environment and the TOML file: which names they may have, and what a file says."""

from __future__ import annotations

import tomllib
from collections.abc import Set
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from bulkfetch.errors import ConfigurationError
from bulkfetch.words import did_you_mean

ENV_PREFIX = "BULKFETCH_"
_SECRETS = ("token", "client_secret")


def read_toml(path: Path, known: Set[str]) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        ConfigurationError: it cannot be read, holds a secret, or has a key that is not `known`.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"the configuration file {path}: {reason}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the configuration file {path} is not TOML: {error}") from error
    for key in values:
        if key in _SECRETS:
            raise ConfigurationError(
                f"the configuration file {path} holds the secret {key}, which is no option: "
                f"move it to the environment as {ENV_PREFIX}{key.upper()} or to a file of its own, "
                f"named by {ENV_PREFIX}{key.upper()}_FILE, and change it, since it was written down"
            )
    if unknown := sorted(set(values) - known):
        raise ConfigurationError(
            f"the configuration file {path} has keys that are no options: {', '.join(unknown)}"
            f"{did_you_mean(known, *unknown)}"
        )
    return values


def keys(settings_type: type[BaseSettings]) -> set[str]:
    """Return the options of these settings, as users write them."""
    return {field.alias or name for name, field in settings_type.model_fields.items()}


def every_key(settings_type: type[BaseSettings]) -> set[str]:
    """Return the options of these settings, and of all that add to them."""
    return keys(settings_type).union(*map(every_key, settings_type.__subclasses__()))
