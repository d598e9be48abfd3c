"""Object stores by their URLs, and files by theirs; what it takes to reach a store is an extra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from yarl import URL

from bulkfetch.errors import ConfigurationError

if TYPE_CHECKING:
    from bulkfetch.stores.store import Store

# For reading where there is no run, and so no budget of retries.
READ_RETRIES = 5


class StoreError(OSError):
    """An object store could not do it; `retryable` where it may the next time."""

    def __init__(self, number: int, what: str, *, retryable: bool = False) -> None:
        super().__init__(number, what)
        self.retryable = retryable


def is_url(text: str) -> bool:
    """Tell whether a destination or a manifest is named by a URL, of whatever kind."""
    return "://" in text


def file_path(text: str) -> str:
    """Return the path that a `file://` URL is of, and any other text as it is.

    Raises:
        ConfigurationError: it is another machine's, or holds more than a path.
    """
    if not text.lower().startswith("file://"):
        return text
    url = URL(text)
    is_here = url.host in (None, "", "localhost")
    if not is_here or not url.path.startswith("/") or "\0" in url.path:
        raise ConfigurationError(f"{text} is no path of this machine: write file:///…")
    if url.query_string or url.fragment:
        # Left out, they would lead to another directory than was meant.
        raise ConfigurationError(
            f"file://{url.path} has more after its path: write %3F for ? and %23 for #"
        )
    return url.path


def open_store(url: str, *, retries: int = 0) -> Store:
    """Return a store by its URL, such as `s3://bucket/prefix`; nothing is asked of it yet.

    Credentials, region, endpoint and encryption come from where the cloud's own tools have them:
    `AWS_*`, `GOOGLE_*` and `AZURE_*` in the environment, or the machine's own identity.

    Args:
        retries: tries after the first, which wait as `obstore` has it; for reading outside a run.

    Raises:
        ConfigurationError: it is no such URL, the extra is missing, or the endpoint is not safe.
    """
    try:
        from bulkfetch.stores.store import opened  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"{url} takes an extra to reach: pip install 'bulkfetch[cloud]'"
        ) from None
    return opened(url, retries)


def blocks_of(url: str) -> Iterator[bytes]:
    """Yield the bytes of an object by its URL.

    Raises:
        ConfigurationError: as for `open_store`.
        FileNotFoundError: there is none.
        StoreError: it cannot be read, or not to its end.
    """
    directory, _, name = url.rpartition("/")
    yield from open_store(directory, retries=READ_RETRIES).blocks(name)
