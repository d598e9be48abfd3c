"""Every option of a run, from command line, environment, TOML file and default, in that order.

A field's name is the option's (`query_concurrency` is `--query-concurrency`), its environment
variable's (`BULKFETCH_QUERY_CONCURRENCY`) and its key's in the TOML file. The command line is built
from these fields (`bulkfetch.cli.options`), so that an option is described once.

Secrets are no options: they come from the environment or from a file that it names.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from yarl import URL

from bulkfetch.errors import ConfigurationError
from bulkfetch.manifest import ManifestFormat
from bulkfetch.models import UPLOADED, Shard
from bulkfetch.paths import DEFAULT_TEMPLATE, TEMPLATE_FIELDS, parse_template

ENV_PREFIX = "BULKFETCH_"

# The storage behind signed URLs: https://cloud.google.com/storage/docs/request-endpoints.
# A leading dot stands for the subdomains, which are buckets.
GOOGLE_STORAGE_HOSTS = ("storage.googleapis.com", ".storage.googleapis.com")


class EngineName(StrEnum):
    """What starts a run's processes: this machine, or a cluster of Ray's."""

    local = "local"
    ray = "ray"


class Environment(StrEnum):
    """The vendor's deployments, by the names that its own client gives them."""

    production = "production"
    staging = "staging"
    candid_sandbox = "candid-sandbox"
    candid_staging = "candid-staging"
    local = "local"


# (pre-encounter API, auth API): from the vendor's client, `candidhealth` 1.37.0.
_HOSTS = {
    Environment.production: (
        "https://pre-api.joincandidhealth.com",
        "https://api.joincandidhealth.com",
    ),
    Environment.staging: (
        "https://pre-api-staging.joincandidhealth.com",
        "https://api-staging.joincandidhealth.com",
    ),
    Environment.candid_sandbox: (
        "https://sandbox-pre-api.joincandidhealth.com",
        "https://sandbox-api.joincandidhealth.com",
    ),
    Environment.candid_staging: (
        "https://staging-pre-api.joincandidhealth.com",
        "https://staging-api.joincandidhealth.com",
    ),
    Environment.local: ("http://localhost:4000", "http://localhost:5050"),
}


@dataclass(frozen=True, slots=True)
class Option:
    """How a field looks on the command line: its heading in `--help`, placeholder, short form."""

    group: str
    metavar: str = ""
    short: str | None = None


@dataclass(frozen=True, slots=True)
class StaticToken:
    """A bearer token that somebody else renews."""

    token: SecretStr


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What the token endpoint takes for a token."""

    client_id: str
    client_secret: SecretStr


def is_loopback(host: str | None) -> bool:
    """Tell whether a URL's host is this machine itself, by name or address."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


def _known(*names: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """Refuse what is nearly one of the names that the API has; it may add others at any time."""

    def check(words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            meant = difflib.get_close_matches(word.upper(), names, 1)
            if meant and word.upper() not in names:
                raise ValueError(f"must be as the API says it ({meant[0]}?)")
        return words

    return check


def _host_name(text: str) -> str:
    if not text or any(sign in text for sign in "/:@?#* "):
        raise ValueError("must be a host name alone, such as storage.example.org")
    return text.lower()


def _no_number(value: object) -> object:
    """Refuse `20261101`, which would be read as seconds since 1970."""
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdigit()):
        raise ValueError("must be a time such as 2026-11-01 or 2026-11-01T12:00:00Z")
    return value


def _path_text(value: object) -> object:
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
PathText = Annotated[str, BeforeValidator(_path_text), Field(min_length=1)]
Sides = Annotated[Words, AfterValidator(_known("FRONT", "BACK"))]
Statuses = Annotated[Words, AfterValidator(_known(UPLOADED, "PENDING", "FAILED"))]
PathTemplate = Annotated[str, AfterValidator(_path_template)]
Moment = Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]

_RUN = "the run"
_API = "where the images come from"
_CHOICE = "which images"
_SPEED = "speed and patience"
_CARE = "safety"
OUTPUT = "what is shown"
GROUPS = (_RUN, _API, _CHOICE, _SPEED, _CARE, OUTPUT)
"""The headings of `--help`, in their order."""
OUT = Option(_RUN, "DEST", "-o")


class Connection(BaseSettings):
    """Where the API is, how to sign in, and how patient to be with it.

    Keyword arguments win over `BULKFETCH_*` environment variables, which win over the TOML file
    named by `config`, which wins over the defaults.

    Raises:
        pydantic.ValidationError: a value is of the wrong form or out of bounds.
        ConfigurationError: the TOML file cannot be read, or has a key that is no option.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_prefix_target="all",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    config: Annotated[Path | None, Option(_RUN, "FILE")] = Field(
        default=None, description="a TOML file with these options as keys"
    )
    environment: Annotated[Environment, Option(_API, "NAME")] = Field(
        default=Environment.production,
        description=f"the vendor's deployment: {', '.join(Environment)}",
    )
    api_url: Annotated[BaseURL | None, Option(_API, "URL")] = Field(
        default=None, description="the pre-encounter API, instead of the environment's"
    )
    auth_url: Annotated[BaseURL | None, Option(_API, "URL")] = Field(
        default=None,
        description="the auth API, instead of the environment's; with --api-url alone, that one",
    )
    query_concurrency: Annotated[int, Field(ge=1, le=1024), Option(_SPEED, "N")] = Field(
        default=16, description="API requests at once"
    )
    rate_limit: Annotated[
        float | None, Field(gt=0, le=100_000, allow_inf_nan=False), Option(_SPEED, "R")
    ] = Field(default=None, description="API requests a second, at most")
    retries: Annotated[int, Field(ge=0, le=100), Option(_SPEED, "N")] = Field(
        default=5, description="tries after the first, for a query and for a file"
    )
    timeout: Annotated[
        float, Field(gt=0, le=3600, allow_inf_nan=False), Option(_SPEED, "SECONDS")
    ] = Field(default=60.0, description="for connecting and for each read, not for the whole body")
    max_outage: Annotated[
        float, Field(ge=0, le=86_400, allow_inf_nan=False), Option(_SPEED, "SECONDS")
    ] = Field(
        default=300.0, description="how long to wait for an API or a storage that stopped working"
    )
    ca_file: Annotated[Path | None, Option(_CARE, "FILE")] = Field(
        default=None, description="certificate authorities (PEM) to trust, instead of the system's"
    )

    client_id: str | None = Field(default=None, min_length=1)
    client_secret: SecretStr | None = Field(default=None)
    client_secret_file: Path | None = Field(default=None)
    token: SecretStr | None = Field(default=None)
    token_file: Path | None = Field(default=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the base class names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = [init_settings, env_settings]
        given = init_settings()
        path = given["config"] if "config" in given else os.environ.get(f"{ENV_PREFIX}CONFIG")
        if path:
            sources.append(InitSettingsSource(settings_cls, _read_toml(settings_cls, Path(path))))
        return tuple(sources)

    @model_validator(mode="after")
    def _one_way_to_sign_in(self) -> Self:
        if self.token and self.token_file:
            raise ValueError("BULKFETCH_TOKEN and BULKFETCH_TOKEN_FILE are both set: unset one")
        if self.client_secret and self.client_secret_file:
            raise ValueError(
                "BULKFETCH_CLIENT_SECRET and BULKFETCH_CLIENT_SECRET_FILE are both set: unset one"
            )
        static = self.token or self.token_file
        if static and (self.client_id or self.client_secret or self.client_secret_file):
            raise ValueError(
                "a token and client credentials are both set: "
                "unset BULKFETCH_TOKEN* or BULKFETCH_CLIENT_*"
            )
        return self

    @property
    def api_base_url(self) -> str:
        """The pre-encounter API in force."""
        return self.api_url or _HOSTS[self.environment][0]

    @property
    def auth_base_url(self) -> str:
        """The auth API in force: credentials never go to another account's by default."""
        return self.auth_url or self.api_url or _HOSTS[self.environment][1]

    @property
    def storage_hosts(self) -> tuple[str, ...]:
        """The hosts that signed URLs may name; a leading dot stands for the subdomains."""
        return GOOGLE_STORAGE_HOSTS

    def credentials(self) -> StaticToken | ClientCredentials:
        """The credentials in force, read from their files where files are named.

        Raises:
            ConfigurationError: there are none, only half of them, or a file cannot be read.
        """
        if self.token:
            return StaticToken(_one_line(self.token.get_secret_value(), "BULKFETCH_TOKEN"))
        if self.token_file:
            return StaticToken(_read_secret(self.token_file, "BULKFETCH_TOKEN_FILE"))
        secret = None
        if self.client_secret:
            secret = _one_line(self.client_secret.get_secret_value(), "BULKFETCH_CLIENT_SECRET")
        elif self.client_secret_file:
            secret = _read_secret(self.client_secret_file, "BULKFETCH_CLIENT_SECRET_FILE")
        if self.client_id and secret:
            return ClientCredentials(self.client_id, secret)
        if self.client_id or secret:
            missing = "BULKFETCH_CLIENT_SECRET" if self.client_id else "BULKFETCH_CLIENT_ID"
            raise ConfigurationError(f"half of the credentials is missing: set {missing}")
        raise ConfigurationError(
            "no credentials: set BULKFETCH_CLIENT_ID and BULKFETCH_CLIENT_SECRET "
            "(or BULKFETCH_CLIENT_SECRET_FILE), or BULKFETCH_TOKEN (or BULKFETCH_TOKEN_FILE)"
        )


class Settings(Connection):
    """All that a run can be told, each with its bounds: given and refused as a `Connection`."""

    out: Annotated[PathText, OUT] = Field(
        description="the archive: a directory, made if it is not there",
    )
    manifest_format: Annotated[ManifestFormat | None, Option(_RUN, "FORM")] = Field(
        default=None,
        description=f"where the ending does not tell: {', '.join(ManifestFormat)}",
    )
    path_template: Annotated[PathTemplate, Option(_RUN, "TEMPLATE")] = Field(
        default=DEFAULT_TEMPLATE,
        description="where in the archive an image lies: directories with "
        f"{', '.join(f'{{{name}}}' for name in TEMPLATE_FIELDS)}, and the name as it is",
    )
    shard: Annotated[Shard | None, NoDecode, BeforeValidator(_shard), Option(_RUN, "I/N")] = Field(
        default=None,
        description="only the I-th of N shares of the manifest; all N may run side by side",
    )
    operator: Annotated[Line | None, Option(_RUN, "NAME")] = Field(
        default=None, description="who asks, for the run's record"
    )
    purpose: Annotated[Line | None, Option(_RUN, "TEXT")] = Field(
        default=None, description="what for: both are for the accounting of disclosures"
    )
    dry_run: Annotated[bool, Option(_RUN)] = Field(
        default=False,
        description="ask the API and say of each patient what would be fetched; write nothing",
    )
    allow_empty: Annotated[bool, Option(_RUN)] = Field(
        default=False, description="a manifest without rows is a quiet night, not an error"
    )
    force: Annotated[bool, Option(_RUN)] = Field(
        default=False, description="re-hash what is in the archive, and fetch anew what is damaged"
    )
    fail_fast: Annotated[bool, Option(_RUN)] = Field(
        default=False, description="stop at the first failure"
    )
    max_failures: Annotated[int | None, Field(ge=1), Option(_RUN, "N")] = Field(
        default=None, description="stop once N patients have failed"
    )
    storage_host: Annotated[HostNames, Option(_API, "HOST")] = Field(
        default=(),
        description="a host that signed URLs may name, besides Google Cloud Storage's; repeatable",
    )
    include_coverages: Annotated[bool, Option(_API)] = Field(
        default=False, description="ask for each patient's coverages and their images too"
    )
    side: Annotated[Sides, Option(_CHOICE, "SIDE")] = Field(
        default=(), description="only this side of the card: FRONT or BACK; repeatable"
    )
    file_type: Annotated[Words, Option(_CHOICE, "TYPE")] = Field(
        default=(),
        description="only this declared type, such as image/jpeg or 'image/*'; repeatable",
    )
    status: Annotated[Statuses, Option(_CHOICE, "STATUS")] = Field(
        default=(), description="only this status: UPLOADED, PENDING or FAILED; repeatable"
    )
    updated_since: Annotated[Moment | None, Option(_CHOICE, "TIME")] = Field(
        default=None, description="only images updated at or after this ISO 8601 time (UTC)"
    )
    download_concurrency: Annotated[int, Field(ge=1, le=1024), Option(_SPEED, "N")] = Field(
        default=32, description="files at once"
    )
    processes: Annotated[int | None, Field(ge=1, le=64), Option(_SPEED, "N")] = Field(
        default=None,
        description="processes that share the work and its bounds; by default as many as cores "
        "and patients are worth",
    )
    engine: Annotated[EngineName, Option(_SPEED, "NAME")] = Field(
        default=EngineName.local,
        description="where the work is done: local, or ray for a cluster (docs/ray.md)",
    )
    ray_address: Annotated[str | None, Option(_SPEED, "HOST:PORT")] = Field(
        default=None,
        min_length=1,
        description="the cluster's head node, or local for a cluster of the run's own; by default "
        "RAY_ADDRESS, or the cluster that this machine is in",
    )
    ray_workers: Annotated[int | None, Field(ge=1, le=1024), Option(_SPEED, "N")] = Field(
        default=None, description="processes to ask the cluster for; by default one for each node"
    )
    strict_type: Annotated[bool, Option(_CARE)] = Field(
        default=False, description="fail an image whose bytes are of another type than declared"
    )
    max_file_size: Annotated[ByteSize | None, Field(ge=1), Option(_CARE, "SIZE")] = Field(
        default=None, description="fail a file that is larger, such as 50MB"
    )
    no_fsync: Annotated[bool, Option(_CARE)] = Field(
        default=False,
        description="do not wait for the disk: faster, but a power cut may cost what was fetched",
    )

    @property
    def storage_hosts(self) -> tuple[str, ...]:
        """Those of `Connection`, and those that were named."""
        return (*GOOGLE_STORAGE_HOSTS, *self.storage_host)


class Building(Connection):
    """What a manifest is to be made of: given and refused as a `Connection`."""

    manifest_format: Annotated[ManifestFormat | None, Option(_RUN, "FORM")] = Field(
        default=None,
        description=f"where the ending does not tell: {', '.join(ManifestFormat)}",
    )
    since: Annotated[Moment | None, Option(_RUN, "TIME")] = Field(
        default=None,
        description="those updated at or after this ISO 8601 time (UTC), deactivated ones too; "
        "with --since-last, where to begin the first time",
    )
    since_last: Annotated[bool, Option(_RUN)] = Field(
        default=False,
        description="those updated since the last manifest of which --out has all; needs --out",
    )
    out: Annotated[str | None, BeforeValidator(_path_text), Option(_RUN, "DEST", "-o")] = Field(
        default=None, min_length=1, description="for --since-last: the archive; it is only read"
    )
    cursor: Annotated[Path | None, BeforeValidator(_path_text), Option(_RUN, "FILE")] = Field(
        default=None,
        description="where --since-last keeps how far it is; by default MANIFEST.cursor.json",
    )
    coverages: Annotated[bool, Option(_RUN)] = Field(
        default=False, description="a row for each coverage too: one more query a patient"
    )
    active_only: Annotated[bool, Option(_RUN)] = Field(
        default=False, description="leave deactivated patients out"
    )


_SECRETS = ("token", "client_secret")
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
    known = {f"{ENV_PREFIX}{key.upper()}" for key in _every_key(Connection)}
    unknown = sorted(name for name in os.environ if name.startswith(ENV_PREFIX))
    said = []
    for name in unknown:
        if name not in known:
            meant = difflib.get_close_matches(name, known, 1)
            hint = f"; is {meant[0]} meant?" if meant else ""
            said.append(f"{name} in the environment is no option{hint}")
    return said


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
    shown = "" if secret else f", not {problem['input']!r}"
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}"


def _read_toml(settings_type: type[BaseSettings], path: Path) -> dict[str, Any]:
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
    if unknown := sorted(set(values) - _every_key(Connection)):
        raise ConfigurationError(
            f"the configuration file {path} has keys that are no options: {', '.join(unknown)}"
        )
    # One file may serve several commands: what another one has is not this one's.
    return {key: value for key, value in values.items() if key in _keys(settings_type)}


def _keys(settings_type: type[BaseSettings]) -> set[str]:
    return {field.alias or name for name, field in settings_type.model_fields.items()}


def _every_key(settings_type: type[BaseSettings]) -> set[str]:
    """Return the options of these settings, and of all that add to them."""
    return _keys(settings_type).union(*map(_every_key, settings_type.__subclasses__()))


def _read_secret(path: Path, variable: str) -> SecretStr:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError(f"{variable}: {path} cannot be read: {reason}") from error
    return _one_line(text, f"{variable}: {path}")


def _one_line(text: str, where: str) -> SecretStr:
    text = text.strip()
    if not text or not text.isprintable():
        raise ConfigurationError(f"{where} is empty or holds more than one line")
    return SecretStr(text)
