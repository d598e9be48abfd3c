"""The HTTP session: what may be reached, how long it may take, and what its failures are called.

Nothing outside this module sees an error of aiohttp.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus

import aiohttp
from aiolimiter import AsyncLimiter
from multidict import MultiMapping
from yarl import URL

from bulkfetch._version import __version__
from bulkfetch.errors import (
    BadResponseError,
    ConnectionFailedError,
    HostDeniedError,
    SignedURLError,
    StatusError,
    TimedOutError,
)
from bulkfetch.retry import retry_after_s
from bulkfetch.settings import GOOGLE_STORAGE_HOSTS, Settings, is_loopback

# A list of some hundred image records is under a megabyte; a body beyond this is no such list.
LARGEST_ANSWER_BYTES = 64 * 2**20
_CHUNK_BYTES = 256 * 2**10
# A resolver reads a name up to its first NUL, say, and so another one than was looked at.
_HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")


class Answer:
    """The head of an HTTP answer, and its body while it comes.

    Attributes:
        status: the HTTP status.
        headers: the header fields; look-ups ignore case, and a field may stand there twice.
        host: the host that answered.
    """

    def __init__(self, response: aiohttp.ClientResponse, who: str, now: float) -> None:
        self._response = response
        self._who = who
        self._now = now
        self.status = response.status
        self.headers: MultiMapping[str] = response.headers
        self.host = response.url.host or ""

    def expect_ok(self, who: str) -> None:
        """Raise `StatusError` unless the status is 200."""
        if self.status == HTTPStatus.OK:
            return
        try:
            phrase = f" {HTTPStatus(self.status).phrase}"
        except ValueError:
            phrase = ""
        raise StatusError(
            f"{who} answered HTTP {self.status}{phrase}",
            self.status,
            retry_after_s(self.headers, self._now),
        )

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, not decoded.

        Raises:
            ConnectionFailedError: the body ended early.
            TimedOutError: nothing came for `timeout` seconds.
        """
        while True:
            with _named_errors(self._who):
                part = await self._response.content.readany()
            if not part:
                return
            yield part


@asynccontextmanager
async def connect(
    settings: Settings, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[Transport]:
    """Open the HTTP session of a run, and close it at the end."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"bulkfetch/{__version__}"},
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=settings.timeout, sock_read=settings.timeout
        ),
        # Digests are of the stored bytes, so a stored gzip encoding is undone by `body`.
        auto_decompress=False,
        read_bufsize=_CHUNK_BYTES,
    ) as session:
        # aiohttp sends a GET again by itself when a connection breaks; `bulkfetch.retry` does that.
        session._retry_connection = False  # noqa: SLF001  there is no public way
        yield Transport(session, settings, clock)


class Transport:
    """Requests over one session, bounded and named.

    Redirects are never followed, cookies never kept, and loopback never goes through a proxy.
    """

    def __init__(
        self, session: aiohttp.ClientSession, settings: Settings, clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._clock = clock
        self._storage_hosts = (*GOOGLE_STORAGE_HOSTS, *settings.storage_host)
        self._allow_loopback = is_loopback(URL(settings.api_base_url).host)
        self._query_slots = asyncio.Semaphore(settings.query_concurrency)
        self._limiter = (
            # One request per slice of time, rather than a burst at the start of each second.
            AsyncLimiter(1, 1 / settings.rate_limit) if settings.rate_limit else None
        )

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, str] | None = None,
    ) -> bytes:
        """Make one API request and return its whole body, if its status is 200.

        Waits for the rate limit and for one of `query_concurrency` slots.

        Raises:
            StatusError, ConnectionFailedError, TimedOutError: as their names say.
            BadResponseError: the body is larger than `LARGEST_ANSWER_BYTES`.
        """
        target = URL(url)
        # Identity: a proxy that compresses all the same is found out by the JSON parser.
        sent = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        async with self._query_slots:
            if self._limiter:
                await self._limiter.acquire()
            async with self._open(
                method, target, f"the API at {target.host}", headers=sent, params=params, json=json
            ) as answer:
                answer.expect_ok(f"the API's {target.path}")
                parts: list[bytes] = []
                size = 0
                async for part in answer.parts():
                    size += len(part)
                    if size > LARGEST_ANSWER_BYTES:
                        raise BadResponseError(
                            f"the API's answer is larger than {LARGEST_ANSWER_BYTES >> 20} MiB",
                            retryable=False,
                        )
                    parts.append(part)
                return b"".join(parts)

    @asynccontextmanager
    async def open_signed(self, url: str) -> AsyncIterator[Answer]:
        """Open a signed URL, sent byte for byte as it was given, and yield its 200 answer.

        Raises:
            HostDeniedError: the URL's host is not on the list; nothing was sent.
            SignedURLError: storage answered 400, 401 or 403.
            StatusError, ConnectionFailedError, TimedOutError: as their names say.
        """
        target = self._allowed(url)
        who = f"the storage at {target.host}"
        # The URL is its own authority: no header that could be another is sent along.
        headers = {"Accept": "*/*", "Accept-Encoding": "gzip"}
        async with self._open("GET", target, who, headers=headers) as answer:
            if answer.status in (400, 401, 403):
                raise SignedURLError(f"{who} refused the signed URL (HTTP {answer.status})")
            answer.expect_ok(who)
            yield answer

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        url: URL,
        who: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None = None,
        json: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Answer]:
        with _named_errors(who):
            response = await self._session.request(
                method,
                url,
                headers=headers,
                params=params,
                json=json,
                allow_redirects=False,
                proxy=_proxy_for(url),
            )
        try:
            yield Answer(response, who, self._clock())
        finally:
            # A body read to its end has given its connection back already; another is cut off.
            response.close()

    def _allowed(self, url: str) -> URL:
        # What cannot be sent as it stands would be changed on the way; a user name or a password
        # would become an Authorization header.
        try:
            target = URL(url, encoded=True)
            host, scheme = (target.raw_host or "").lower(), target.scheme
            plain = url.isprintable() and " " not in url and target.raw_authority.count("@") == 0
        except ValueError:
            host, scheme, plain = "", "", False
        if plain and scheme == "https" and _HOST_NAME.fullmatch(host) and any(
            host == name or (name.startswith(".") and host.endswith(name))
            for name in self._storage_hosts
        ):
            return target
        if plain and self._allow_loopback and scheme in ("http", "https") and is_loopback(host):
            return target
        shown = f"{scheme}://{host}" if host else "no host at all"
        raise HostDeniedError(
            f"the signed URL names {shown}, which is no storage host bulkfetch knows: nothing was "
            "sent; if it is yours, name it with --storage-host"
        )


def _proxy_for(url: URL) -> str | None:
    if is_loopback(url.host) or urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)


@contextmanager
def _named_errors(who: str) -> Iterator[None]:
    """Turn every error that aiohttp may raise into one of ours; cancellation passes by."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        reason = getattr(error.certificate_error, "verify_message", "") or "not trusted"
        raise ConnectionFailedError(
            f"{who} showed a certificate that cannot be trusted: {reason}", retryable=False
        ) from None
    except aiohttp.ClientConnectorDNSError:
        raise ConnectionFailedError(f"{who}: its name is not known to DNS") from None
    except (aiohttp.ClientSSLError, ssl.SSLError):
        raise ConnectionFailedError(f"{who} could not agree on TLS", retryable=False) from None
    except TimeoutError:
        raise TimedOutError(f"{who} said nothing within the timeout") from None
    except aiohttp.ClientPayloadError:
        raise ConnectionFailedError(f"{who} ended its answer early") from None
    except aiohttp.ClientOSError as error:
        reason = error.strerror or "the connection broke"
        raise ConnectionFailedError(f"{who}: {reason}") from None
    except (aiohttp.ClientError, OSError, ValueError):
        raise ConnectionFailedError(f"{who} hung up or did not speak HTTP") from None
