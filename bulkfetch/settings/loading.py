"""Settings made from what a command line gave, and what is wrong with them in plain words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings

from bulkfetch.errors import ConfigurationError
from bulkfetch.settings.fields import Connection
from bulkfetch.settings.sources import ENV_PREFIX, every_key
from bulkfetch.words import did_you_mean

# What pydantic says of these is for programmers.
_PLAINLY = {
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "byte_size": "must be a size such as 50MB",
    "byte_size_unit": "must be a size such as 50MB",
    "datetime_from_date_parsing": "must be a time such as 2026-11-01 or 2026-11-01T12:00:00Z",
    "datetime_parsing": "must be a time such as 2026-11-01 or 2026-11-01T12:00:00Z",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}

S = TypeVar("S", bound=BaseSettings)


def load(settings_type: type[S], given: Mapping[str, Any]) -> S:
    """Make settings from what a command line gave, over environment, file and defaults.

    Raises:
        ConfigurationError: names every wrong option, where its value came from, and its bounds.
    """
    try:
        return settings_type(**given)
    except ValidationError as error:
        problems = explain(settings_type, error, given)
    raise ConfigurationError("\n".join(said for _, said in problems))


def explain(
    settings_type: type[BaseSettings], error: ValidationError, given: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Say what is wrong with which setting, by its key: "" where it is how several go together."""
    return [
        (str(problem["loc"][0]) if problem["loc"] else "", _explain(settings_type, problem, given))
        for problem in error.errors()
    ]


def unknown_variables() -> list[str]:
    """Say which `BULKFETCH_*` variables are no options, each with the likeliest one meant.

    They are no error: other programs name variables for a service called bulkfetch.
    """
    known = {f"{ENV_PREFIX}{key.upper()}" for key in every_key(Connection)}
    set_here = sorted(name for name in os.environ if name.startswith(ENV_PREFIX))
    return [
        f"{name} in the environment is no option{did_you_mean(known, name)}"
        for name in set_here
        if name not in known
    ]


def _explain(
    settings_type: type[BaseSettings], problem: ErrorDetails, given: Mapping[str, Any]
) -> str:
    message = _PLAINLY.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if not problem["loc"]:
        return str(message)
    name = str(problem["loc"][0])
    option = "--" + name.replace("_", "-")
    variable = ENV_PREFIX + name.upper()
    if problem["type"] == "missing":
        return f"{option} is missing: give it, or set {variable}"
    if name in given:
        where = option
    elif variable in os.environ:
        where = f"{option} (from {variable})"
    else:
        where = f"{option} (from the configuration file)"
    field = settings_type.model_fields.get(name)
    secret = field is None or "Secret" in str(field.annotation) or "@" in str(problem["input"])
    value = problem["input"]
    words = value if isinstance(value, list | tuple) else [value]
    shown = "" if secret else f", not {', '.join(map(repr, words))}"
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"
