"""The options themselves, each with its bounds, its default and its line of help."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, ByteSize, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bulkfetch.errors import ConfigurationError
from bulkfetch.manifest import ManifestFormat
from bulkfetch.models import Filters
from bulkfetch.paths import DEFAULT_TEMPLATE, TEMPLATE_FIELDS
from bulkfetch.settings.credentials import ClientCredentials, StaticToken, one_line, read_secret
from bulkfetch.settings.hosts import GOOGLE_STORAGE_HOSTS, HOSTS, EngineName, Environment
from bulkfetch.settings.sources import ENV_PREFIX, every_key, keys, read_toml
from bulkfetch.settings.values import (
    BaseURL,
    FileTypes,
    HostNames,
    Line,
    Moment,
    PathTemplate,
    PathText,
    Share,
    Sides,
    Statuses,
    path_text,
)


@dataclass(frozen=True, slots=True)
class Option:
    """How a field looks on the command line: its heading in `--help`, placeholder, short form."""

    group: str
    metavar: str = ""
    short: str | None = None


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
        default=300.0,
        description="how long to wait for an API or a storage that stops working on the way",
    )
    ca_file: Annotated[Path | None, Option(_CARE, "FILE")] = Field(
        default=None, description="certificate authorities (PEM) to trust, instead of the system's"
    )

    client_id: str | None = Field(
        default=None, min_length=1, description="the client's ID, which goes with a secret"
    )
    client_secret: SecretStr | None = Field(default=None, description="the client's secret")
    client_secret_file: Path | None = Field(
        default=None, description="a file that holds the secret, in one line"
    )
    token: SecretStr | None = Field(
        default=None, description="a bearer token, in place of the client's ID and secret"
    )
    token_file: Path | None = Field(
        default=None, description="a file that holds the token, in one line"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the base class names it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See `BaseSettings`: the TOML file comes last."""
        sources = [init_settings, env_settings]
        given = init_settings()
        path = given["config"] if "config" in given else os.environ.get(f"{ENV_PREFIX}CONFIG")
        if path:
            values = read_toml(Path(path), every_key(Connection))
            # One file may serve several commands: what another one has is not this one's.
            own = {key: value for key, value in values.items() if key in keys(settings_cls)}
            sources.append(InitSettingsSource(settings_cls, own))
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
        return self.api_url or HOSTS[self.environment][0]

    @property
    def auth_base_url(self) -> str:
        """The auth API in force: credentials never go to another account's by default."""
        return self.auth_url or self.api_url or HOSTS[self.environment][1]

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
            return StaticToken(one_line(self.token.get_secret_value(), "BULKFETCH_TOKEN"))
        if self.token_file:
            return StaticToken(read_secret(self.token_file, "BULKFETCH_TOKEN_FILE"))
        secret = None
        if self.client_secret:
            secret = one_line(self.client_secret.get_secret_value(), "BULKFETCH_CLIENT_SECRET")
        elif self.client_secret_file:
            secret = read_secret(self.client_secret_file, "BULKFETCH_CLIENT_SECRET_FILE")
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
        description="the archive: a directory, made if it is not there, or a bucket's URL",
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
    shard: Annotated[Share, Option(_RUN, "I/N")] = Field(
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
    file_type: Annotated[FileTypes, Option(_CHOICE, "TYPE")] = Field(
        default=(),
        description="only what is declared to be image/jpeg, or 'image/*', say; repeatable",
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

    @property
    def filters(self) -> Filters:
        """The options that say which images, as far as they were given."""
        given = {
            name: value
            for name, option in options_of(type(self)).items()
            if option.group == _CHOICE and (value := getattr(self, name))
        }
        return {
            name: value if isinstance(value, tuple) else (value.isoformat(),)
            for name, value in given.items()
        }


def options_of(settings_type: type[Connection]) -> dict[str, Option]:
    """Return how each field looks that is an option, by its name."""
    return {
        name: option
        for name, field in settings_type.model_fields.items()
        for option in field.metadata
        if isinstance(option, Option)
    }


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
    out: Annotated[str | None, BeforeValidator(path_text), Option(_RUN, "DEST", "-o")] = Field(
        default=None, min_length=1, description="for --since-last: the archive; it is only read"
    )
    cursor: Annotated[Path | None, BeforeValidator(path_text), Option(_RUN, "FILE")] = Field(
        default=None,
        description="where --since-last keeps how far it is; by default MANIFEST.cursor.json",
    )
    coverages: Annotated[bool, Option(_RUN)] = Field(
        default=False, description="a row for each coverage too: one more query a patient"
    )
    active_only: Annotated[bool, Option(_RUN)] = Field(
        default=False, description="leave deactivated patients out"
    )
