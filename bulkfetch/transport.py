"""The HTTP session: what may be reached, how long it may take, and what its failures are called.

Nothing outside this module sees an error of aiohttp.
"""

from __future__ import annotations

import re
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from http import HTTPStatus

import aiohttp
from aiolimiter import AsyncLimiter
from multidict import MultiMapping
from yarl import URL

from bulkfetch._version import __version__
from bulkfetch.errors import (
    BadResponseError,
    ConfigurationError,
    ConnectionFailedError,
    HostDeniedError,
    SignedURLError,
    StatusError,
    TimedOutError,
)
from bulkfetch.retry import retry_after_s
from bulkfetch.settings import GOOGLE_STORAGE_HOSTS, Settings, is_loopback
from bulkfetch.slots import AdaptiveSlots

# A list of some hundred image records is under a megabyte; a body beyond this is no such list.
LARGEST_ANSWER_BYTES = 64 * 2**20
# A body that comes more slowly than this is as good as stalled.
SLOWEST_BYTES_PER_S = 1000
REDIRECTS_AT_MOST = 3
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

    def __init__(
        self, response: aiohttp.ClientResponse, who: str, now: float, slow_after_s: float
    ) -> None:
        self._response = response
        self._who = who
        self._now = now
        self._slow_after_s = slow_after_s
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
            retry_after_s(self.status, self.headers, self._now),
        )

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, not decoded.

        Raises:
            ConnectionFailedError: the body ended early.
            TimedOutError: nothing came for `timeout` seconds, or less than `SLOWEST_BYTES_PER_S`
                while as long was spent waiting for it.
        """
        waited_s, size = 0.0, 0
        while True:
            began = time.monotonic()
            with _named_errors(self._who):
                part = await self._response.content.readany()
            if not part:
                return
            # The time that the disk takes is not the server's.
            waited_s += time.monotonic() - began
            size += len(part)
            if waited_s >= self._slow_after_s:
                if size < SLOWEST_BYTES_PER_S * waited_s:
                    raise TimedOutError(
                        f"{self._who} sent only {size / waited_s:.0f} bytes a second"
                    )
                waited_s, size = 0.0, 0
            yield part


@asynccontextmanager
async def connect(
    settings: Settings, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[Transport]:
    """Open the HTTP session of a run, and close it at the end.

    Raises:
        ConfigurationError: `ca_file` cannot be read, or holds no certificate.
    """
    try:
        trust = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or "it holds no certificate"
        raise ConfigurationError(f"--ca-file {settings.ca_file}: {reason}") from error
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=trust),
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

    Cookies are never kept, and loopback never goes through a proxy.
    """

    def __init__(
        self, session: aiohttp.ClientSession, settings: Settings, clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._clock = clock
        self._storage_hosts = (*GOOGLE_STORAGE_HOSTS, *settings.storage_host)
        self._allow_loopback = is_loopback(URL(settings.api_base_url).host)
        self._slow_after_s = settings.timeout
        self.query_slots = AdaptiveSlots(settings.query_concurrency)
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
        async with self.query_slots.take() as slot:
            if self._limiter:
                await self._limiter.acquire()
            async with self._open(
                method, target, f"the API at {target.host}", headers=sent, params=params, json=json
            ) as answer:
                if answer.status in (429, 503):
                    self.query_slots.throttled(slot)
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
            self.query_slots.went_well()
            return b"".join(parts)

    @asynccontextmanager
    async def open_signed(
        self, url: str, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Answer]:
        """Open a signed URL, sent byte for byte as it was given, and yield its 200 or 206 answer.

        Redirects are followed within the list of hosts. A 206 comes only if `headers` ask for a
        range.

        Raises:
            HostDeniedError: the URL or a redirect names a host that is not on the list; nothing
                was sent to it.
            SignedURLError: storage answered 400, 401 or 403.
            StatusError, ConnectionFailedError, TimedOutError: as their names say.
        """
        # The URL is its own authority: no header that could be another is sent along.
        sent = {"Accept": "*/*", "Accept-Encoding": "gzip", **(headers or {})}
        async with AsyncExitStack() as stack:
            target = self._allowed(url)
            for _ in range(REDIRECTS_AT_MOST + 1):
                who = f"the storage at {target.host}"
                answer = await stack.enter_async_context(
                    self._open("GET", target, who, headers=sent)
                )
                location = answer.headers.get("Location")
                if answer.status not in (301, 302, 303, 307, 308) or not location:
                    break
                target = self._allowed(location, "a redirect of the storage")
            if answer.status in (400, 401, 403):
                raise SignedURLError(f"{who} refused the signed URL (HTTP {answer.status})")
            if answer.status != HTTPStatus.PARTIAL_CONTENT or "Range" not in sent:
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
            yield Answer(response, who, self._clock(), self._slow_after_s)
        finally:
            # A body read to its end has given its connection back already; another is cut off.
            response.close()

    def _allowed(self, url: str, what: str = "the signed URL") -> URL:
        # What cannot be sent as it stands would be changed on the way; a user name or a password
        # would become an Authorization header.
        try:
            target = URL(url, encoded=True)
            host, scheme = (target.raw_host or "").lower(), target.scheme
            if not url.isprintable() or " " in url or "@" in target.raw_authority:
                host = ""
        except ValueError:
            host, scheme = "", ""
        if scheme == "https" and any(
            host == name or (name.startswith(".") and host.endswith(name))
            for name in self._storage_hosts
            if _HOST_NAME.fullmatch(host)
        ):
            return target
        if self._allow_loopback and scheme in ("http", "https") and is_loopback(host):
            return target
        # A URL that was cut or glued together may have anything where its host should be.
        shown = "no host in a plain form"
        if _HOST_NAME.fullmatch(host) or is_loopback(host):
            shown = f"{scheme}://{host}"
        raise HostDeniedError(
            f"{what} names {shown}, which is no storage host bulkfetch knows: nothing was "
            "sent; if it is yours, name it with --storage-host"
        )


def expires_at(url: str) -> float | None:
    """Read when a signed URL ends, as Unix time, or None where it does not tell in a known form.

    V4: `X-Goog-Date` and `X-Goog-Expires` (seconds); V2: `Expires`. A hint, no more:
    https://cloud.google.com/storage/docs/access-control/signed-urls.
    """
    try:
        query = URL(url, encoded=True).query
        if (begins := query.get("X-Goog-Date")) is not None:
            moment = datetime.strptime(begins, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return moment.timestamp() + float(query["X-Goog-Expires"])
        return float(query["Expires"])
    except (KeyError, ValueError, OverflowError):
        return None


def _proxy_for(url: URL) -> str | None:
    if is_loopback(url.host) or urllib.request.proxy_bypass(url.host or ""):
        return None
    proxy = urllib.request.getproxies().get(url.scheme)
    # Written without a scheme it means HTTP, to curl and to everybody.
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


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
    except (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError) as error:
        status = getattr(error, "status", None)
        reason = f"answered HTTP {status}" if status else "could not be reached"
        raise ConnectionFailedError(f"the proxy on the way to {who} {reason}") from None
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
