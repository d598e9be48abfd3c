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
    """One setting in force.

    `value` is as a command line would have it, "" where it is not set, and hidden where it is
    secret. `source` is "command line", a variable, a file, or "default".
    """

    name: str
    value: str
    source: str


class Setup(NamedTuple, Generic[S_co]):
    """Settings as `load` makes them, but with the default for each that is wrong.

    `wrong` is what is said of these, by key: "config" is a file that cannot be used, and "" means
    credentials that contradict each other.
    """

    settings: S_co
    wrong: Mapping[str, str]
    in_force: list[Setting]

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
            sources = {setting.name: setting.source for setting in self.in_force if setting.value}
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
        given = sum(setting.source != BY_DEFAULT for setting in self.in_force)
        return f"{given} given, {len(self.in_force) - given} by default"

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
    taken = dict(given)
    while True:
        try:
            settings = settings_type(**taken)
        except ConfigurationError as error:
            said = {"config": str(error)}
        except ValidationError as error:
            said = dict(explain(settings_type, error, taken))
        else:
            return Setup(settings, wrong, _in_force(settings, given, _keys(wrong)))
        wrong |= said
        # What is given as an argument wins over what is wrong elsewhere.
        taken |= {key: _fields(settings_type)[key].get_default() for key in _keys(said)}


def _in_force(settings: Settings, given: Mapping[str, Any], wrong: set[str]) -> list[Setting]:

    def source(key: str, name: str) -> str:
        if key in wrong or name not in settings.model_fields_set:
            return BY_DEFAULT
        if key in given:
            return "command line"
        variable = f"{ENV_PREFIX}{key.upper()}"
        return variable if os.environ.get(variable) else str(settings.config)

    def text(key: str, value: object) -> str:
        if value in (None, ()):
            return ""
        if key in _NEVER_SHOWN or isinstance(value, SecretStr):
            return HIDDEN
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"{value:g}"
        return ", ".join(value) if type(value) is tuple else str(value)

    fields = type(settings).model_fields
    return [
        Setting(key, text(key, getattr(settings, name)), source(key, name))
        for name, key in ((name, field.alias or name) for name, field in fields.items())
    ]


def _fields(settings_type: type[Settings]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in settings_type.model_fields.items()}


def _keys(wrong: Iterable[str]) -> set[str]:
    return {key for name in wrong for key in ([name] if name else _CREDENTIALS)}
