"""What a run would be told, and by whom: the settings in force, wrong ones put aside."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import SecretStr, ValidationError

from bulkfetch.doctor.checks import Checks, ProblemError, aside
from bulkfetch.errors import ConfigurationError
from bulkfetch.logs import HIDDEN
from bulkfetch.settings import (
    ENV_PREFIX,
    ClientCredentials,
    Settings,
    StaticToken,
    explain,
    unknown_variables,
)

_CREDENTIALS = ("client_id", "client_secret", "client_secret_file", "token", "token_file")
_NEVER_SHOWN = ("client_id", "client_secret", "token")
# Where one of these is wrong, its default may be another account's.
_WHERE = ("config", "environment", "api_url", "auth_url")
BY_DEFAULT = "default"

S = TypeVar("S", bound=Settings)
S_co = TypeVar("S_co", bound=Settings, covariant=True)


class Setting(NamedTuple):
    """One setting, as it is in force, or as it was given where that is wrong.

    `value` is as a command line would have it, "" where it is not set, and hidden where it is
    secret. `source` is "command line", a variable, a file, or "default". `wrong` says what is wrong
    with it, and is "" otherwise; then the default is in force.
    """

    name: str
    value: str
    source: str
    wrong: str = ""


class Setup(NamedTuple, Generic[S_co]):
    """Settings as `load` makes them, but with the default for each that is wrong.

    `wrong` is what is said of these, by key: "config" is a file that cannot be used, and "" means
    credentials that contradict each other. `every` has all settings, those too.
    """

    settings: S_co
    wrong: Mapping[str, str]
    every: list[Setting]

    @property
    def tells_where(self) -> bool:
        """Whether it is sure which API is meant: credentials go to no other."""
        return not self.wrong.keys() & set(_WHERE)

    async def check(self, checks: Checks) -> StaticToken | ClientCredentials | None:
        """Check the settings themselves, and return the credentials in force, if there are any.

        These are read but once, since a file may be a pipe.
        """
        found: StaticToken | ClientCredentials | None = None

        async def credentials() -> str:
            nonlocal found
            if "" in self.wrong:
                raise ProblemError(self.wrong[""], "keep one of the two")
            found = await aside(self.settings.credentials)
            sources = {one.name: one.source for one in self.every if one.value and not one.wrong}
            told = ", ".join(f"{key} from {sources[key]}" for key in _CREDENTIALS if key in sources)
            kind = "a token" if isinstance(found, StaticToken) else "a client ID and its secret"
            return f"{kind}: {told}"

        await checks("settings", self._settings)
        await checks("variables", self._variables)
        await checks("credentials", credentials)
        if self.settings.token_file or self.settings.client_secret_file:
            await checks("secret file", self._secret_file, needs=["credentials"])
        return found

    async def _settings(self) -> str:
        if said := [text for key, text in self.wrong.items() if key]:
            raise ProblemError(
                "; ".join(said), "correct it; what follows is checked with its default instead"
            )
        given = sum(setting.source != BY_DEFAULT for setting in self.every)
        return f"{given} given, {len(self.every) - given} by default"

    async def _variables(self) -> str:
        if unknown := unknown_variables():
            raise ProblemError("; ".join(unknown), "correct the name, or unset it")
        return "every BULKFETCH_* variable is an option"

    async def _secret_file(self) -> str:
        for path in (self.settings.token_file, self.settings.client_secret_file):
            if path and path.stat().st_mode & 0o066:
                raise ProblemError(
                    f"{path}: others than its owner may read or write it",
                    f"chmod 600 {shlex.quote(str(path))}",
                )
        return "for its owner alone"


def set_up(settings_type: type[S], given: Mapping[str, Any]) -> Setup[S]:
    """Return the settings that a command line, the environment, a file and defaults make."""
    wrong: dict[str, str] = {}
    refused: dict[str, object] = {}
    taken = dict(given)
    while True:
        try:
            settings = settings_type(**taken)
        except ConfigurationError as error:
            said = {"config": str(error)}
            refused["config"] = taken.get("config") or os.environ.get(f"{ENV_PREFIX}CONFIG")
        except ValidationError as error:
            said = dict(explain(settings_type, error, taken))
            refused |= _refused(error)
        else:
            return Setup(settings, wrong, _every_setting(settings, given, wrong, refused))
        wrong |= said
        # What is given as an argument wins over what is wrong elsewhere.
        taken |= {key: _fields(settings_type)[key].get_default() for key in _keys(said)}


def _refused(error: ValidationError) -> dict[str, object]:
    """Return the values that are wrong, by key."""
    refused: dict[str, object] = {}
    for problem in error.errors():
        if problem["loc"]:
            refused[str(problem["loc"][0])] = problem["input"]
        else:
            refused |= {key: problem["input"].get(key) for key in _CREDENTIALS}
    return refused


def _every_setting(
    settings: Settings,
    given: Mapping[str, Any],
    wrong: Mapping[str, str],
    refused: Mapping[str, object],
) -> list[Setting]:

    def setting(key: str, name: str) -> Setting:
        if refused.get(key) is not None:
            # As `explain` does: a URL may hold a password.
            shown = HIDDEN if "@" in str(refused[key]) else _text(key, refused[key])
            return Setting(key, shown, source(key), wrong.get(key) or wrong[""])
        is_given = name in settings.model_fields_set and key not in refused
        value = _text(key, getattr(settings, name))
        return Setting(key, value, source(key) if is_given else BY_DEFAULT)

    def source(key: str) -> str:
        if key in given:
            return "command line"
        variable = f"{ENV_PREFIX}{key.upper()}"
        return variable if os.environ.get(variable) else str(settings.config)

    fields = type(settings).model_fields
    return [setting(field.alias or name, name) for name, field in fields.items()]


def _text(key: str, value: object) -> str:
    if value in (None, ()):
        return ""
    if key in _NEVER_SHOWN or isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    # A shard is a tuple, too, and is one value.
    if type(value) is tuple or isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _fields(settings_type: type[Settings]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in settings_type.model_fields.items()}


def _keys(wrong: Iterable[str]) -> set[str]:
    return {key for name in wrong for key in ([name] if name else _CREDENTIALS)}
