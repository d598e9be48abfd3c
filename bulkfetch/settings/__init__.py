"""Every option of a run, from command line, environment, TOML file and default, in that order.

A field's name is the option's (`query_concurrency` is `--query-concurrency`), its environment
variable's (`BULKFETCH_QUERY_CONCURRENCY`) and its key's in the TOML file. The command line is built
from these fields (`bulkfetch.cli.options`), so that an option is described once.

Secrets are no options: they come from the environment or from a file that it names.
"""

from bulkfetch.settings.credentials import ClientCredentials, StaticToken
from bulkfetch.settings.fields import (
    GROUPS,
    OUT,
    OUTPUT,
    Building,
    Connection,
    Option,
    Settings,
    options_of,
)
from bulkfetch.settings.hosts import GOOGLE_STORAGE_HOSTS, EngineName, Environment, is_loopback
from bulkfetch.settings.loading import explain, load, unknown_variables
from bulkfetch.settings.sources import ENV_PREFIX
from bulkfetch.settings.values import Address, Listening, PathText, PromFile

__all__ = [
    "ENV_PREFIX",
    "GOOGLE_STORAGE_HOSTS",
    "GROUPS",
    "OUT",
    "OUTPUT",
    "Address",
    "Building",
    "ClientCredentials",
    "Connection",
    "EngineName",
    "Environment",
    "Listening",
    "Option",
    "PathText",
    "PromFile",
    "Settings",
    "StaticToken",
    "explain",
    "is_loopback",
    "load",
    "options_of",
    "unknown_variables",
]
