"""The HTTP session: what may be reached, how long it may take, and what its failures are called.

Nothing outside this module sees an error of aiohttp.
"""

from __future__ import annotations

import re
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache, lru_cache
from http import HTTPStatus

import aiohttp
from multidict import MultiMapping
from yarl import URL

from bulkfetch._version import __version__
from bulkfetch.errors import (
    BadResponseError,
    ConfigurationError,
    ConnectionFailedError,
    FetchError,
    HostDeniedError,
    SignedURLError,
    StatusError,
    TimedOutError,
)
from bulkfetch.logs import plain
from bulkfetch.measures import Measures
from bulkfetch.retry import retry_after_s
from bulkfetch.settings import Connection, is_loopback
from bulkfetch.slots import AdaptiveSlots, Pace

# A list of some hundred image records is under a megabyte; a body beyond this is no such list.
LARGEST_ANSWER_BYTES = 64 * 2**20
# A body that comes more slowly than this is as good as stalled.
SLOWEST_BYTES_PER_S = 1000
REDIRECTS_AT_MOST = 3
_CHUNK_BYTES = 256 * 2**10
# A resolver reads a name up to its first NUL, say, and so another one than was looked at.
_HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_ORIGINS_AT_MOST = 1000
_EXPIRY = re.compile(r"[?&](X-Goog-Date|X-Goog-Expires|Expires)=([^&#]*)")
# What aiohttp raises: its own errors, the operating system's, and ValueError for what is no HTTP.
_FOREIGN = (aiohttp.ClientError, OSError, ValueError)


class Answer:
    """The head of an HTTP answer, and its body while it comes.

    Attributes:
        status: the HTTP status.
        headers: the header fields; look-ups ignore case, and a field may stand there twice.
        host: the host that answered.

    To be closed in any case. A body read to its end has given its connection back already; another
    is cut off.
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
        self.host = response.url.raw_host or ""

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
        content = self._response.content
        while True:
            began = time.monotonic()
            try:
                part = await content.readany()
            except _FOREIGN as error:
                raise _named_error(error, self._who) from None
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

    def close(self) -> None:
        """Let go of the connection."""
        self._response.close()


def trust(settings: Connection) -> ssl.SSLContext:
    """Return what says whose certificates are trusted.

    Raises:
        ConfigurationError: `ca_file` cannot be read, or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or "it holds no certificate"
        raise ConfigurationError(f"--ca-file {settings.ca_file}: {reason}") from error


@asynccontextmanager
async def connect(
    settings: Connection, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[Transport]:
    """Open the HTTP session of a run, and close it at the end.

    Raises:
        ConfigurationError: `ca_file` cannot be read, or holds no certificate.
    """
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=trust(settings)),
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

    Attributes:
        query_slots: how many API requests may be in flight.
        pace: how many may begin in a second.
        measures: of the requests that were made.

    Cookies are never kept, and loopback never goes through a proxy.
    """

    def __init__(
        self, session: aiohttp.ClientSession, settings: Connection, clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._clock = clock
        self._storage_hosts = settings.storage_hosts
        self._allow_loopback = is_loopback(URL(settings.api_base_url).host)
        self._slow_after_s = settings.timeout
        self._proxy_for = cache(proxy_for)
        # Origins of signed URLs that were looked at and found to be on the list.
        self._known_origins: set[tuple[str, str]] = set()
        self.query_slots = AdaptiveSlots(settings.query_concurrency)
        self.pace = Pace(settings.rate_limit)
        self.measures = Measures()

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
            await self.pace.turn()
            who = f"the API at {target.raw_host}"
            began = time.monotonic()
            answer = await self._open(method, target, who, headers=sent, params=params, json=json)
            try:
                if answer.status in (429, 503):
                    self.measures.throttled += 1
                    self.query_slots.throttled(slot)
                try:
                    answer.expect_ok(f"the API's {target.path}")
                except StatusError as error:
                    if error.status == HTTPStatus.NOT_FOUND:
                        error.body = await _whole(answer)
                    raise
                body = await _whole(answer)
            finally:
                answer.close()
                self.measures.queries.note(time.monotonic() - began)
            self.query_slots.went_well()
            return body

    async def knock(self, url: str) -> Answer:
        """Ask the API for a URL without a token, and return the answer, whatever its status.

        The caller closes it.

        Raises:
            ConnectionFailedError, TimedOutError: as their names say.
        """
        target = URL(url)
        headers = {"Accept-Encoding": "identity"}
        return await self._open("GET", target, f"the API at {target.raw_host}", headers=headers)

    async def open_signed(self, url: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Open a signed URL, sent byte for byte as it was given, and return its 200 or 206 answer.

        Redirects are followed within the list of hosts. A 206 comes only if `headers` ask for a
        range. The caller closes the answer.

        Raises:
            HostDeniedError: the URL or a redirect names a host that is not on the list; nothing
                was sent to it.
            SignedURLError: storage answered 400, 401 or 403.
            StatusError, ConnectionFailedError, TimedOutError: as their names say.
        """
        # The URL is its own authority: no header that could be another is sent along.
        sent = {"Accept": "*/*", "Accept-Encoding": "gzip", **(headers or {})}
        target = self._allowed(url)
        for left in reversed(range(REDIRECTS_AT_MOST + 1)):
            who = f"the storage at {target.raw_host}"
            answer = await self._open("GET", target, who, headers=sent)
            if answer.status == HTTPStatus.OK:
                break
            try:
                location = answer.headers.get("Location")
                if not (answer.status in (301, 302, 303, 307, 308) and location and left):
                    _expect_signed(answer, who, with_range="Range" in sent)
                    break
                target = self._allowed(location, "a redirect of the storage")
            except BaseException:
                answer.close()
                raise
            answer.close()
        return answer

    async def _open(
        self,
        method: str,
        url: URL,
        who: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None = None,
        json: Mapping[str, str] | None = None,
    ) -> Answer:
        try:
            response = await self._session.request(
                method,
                url,
                headers=headers,
                params=params,
                json=json,
                allow_redirects=False,
                proxy=self._proxy_for(url.scheme, url.raw_host or ""),
            )
        except _FOREIGN as error:
            raise _named_error(error, who) from None
        return Answer(response, who, self._clock(), self._slow_after_s)

    def _allowed(self, url: str, what: str = "the signed URL") -> URL:
        scheme, _, rest = url.partition("://")
        authority, _, _ = rest.partition("/")
        # What cannot be sent as it stands would be changed on the way; a user name or a password
        # would become an Authorization header.
        if (scheme, authority) in self._known_origins and url.isprintable() and " " not in url:
            return URL(url, encoded=True)
        target = self._looked_at(url, what)
        if target.raw_authority == authority and len(self._known_origins) < _ORIGINS_AT_MOST:
            self._known_origins.add((scheme, authority))
        return target

    def _looked_at(self, url: str, what: str) -> URL:
        try:
            target = URL(url, encoded=True)
            host, scheme = (target.raw_host or "").lower(), target.scheme
            if not (target.host and url.isprintable()) or " " in url or "@" in target.raw_authority:
                host = ""
        except (ValueError, IndexError):  # the second of brackets in odd places
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


async def _whole(answer: Answer) -> bytes:
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


def _expect_signed(answer: Answer, who: str, *, with_range: bool) -> None:
    if answer.status in (400, 401, 403):
        raise SignedURLError(f"{who} refused the signed URL (HTTP {answer.status})")
    if answer.status != HTTPStatus.PARTIAL_CONTENT or not with_range:
        answer.expect_ok(who)


def expires_at(url: str) -> float | None:
    """Read when a signed URL ends, as Unix time, or None where it does not tell in a known form.

    V4: `X-Goog-Date` and `X-Goog-Expires` (seconds); V2: `Expires`. A hint, no more:
    https://cloud.google.com/storage/docs/access-control/signed-urls.
    """
    told = dict(reversed(_EXPIRY.findall(url.partition("#")[0])))
    try:
        if (begins := told.get("X-Goog-Date")) is not None:
            return _unix_time(begins) + float(told["X-Goog-Expires"])
        return float(told["Expires"])
    except (KeyError, ValueError, OverflowError):
        return None


@lru_cache(maxsize=1024)
def _unix_time(text: str) -> float:
    return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy that the environment names for a host, None for loopback and the exempt.

    Raises:
        ConfigurationError: it is no HTTP proxy.
    """
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy:
        return None
    # Written without a scheme it means HTTP, to curl and to everybody.
    spoken, there, _ = proxy.partition("://")
    if there and spoken.lower() not in ("http", "https"):
        raise ConfigurationError(
            f"{scheme.upper()}_PROXY names a proxy of {plain(spoken)}://: only http:// can be used"
        )
    return proxy if there else f"http://{proxy}"


def _named_error(error: Exception, who: str) -> FetchError:
    """Return one of our errors for every one that aiohttp may raise."""
    retryable = True
    match error:
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "") or "not trusted"
            what = f"{who} showed a certificate that cannot be trusted: {reason}"
            retryable = False
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            status = getattr(error, "status", None)
            reason = f"answered HTTP {status}" if status else "could not be reached"
            what = f"the proxy on the way to {who} {reason}"
        case aiohttp.ClientConnectorDNSError():
            what = f"{who}: its name is not known to DNS"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            what = f"{who} could not agree on TLS"
            retryable = False
        case TimeoutError():
            return TimedOutError(f"{who} said nothing within the timeout")
        case aiohttp.ClientPayloadError():
            what = f"{who} ended its answer early"
        case aiohttp.ClientOSError():
            what = f"{who}: {error.strerror or 'the connection broke'}"
        case _:
            what = f"{who} hung up or did not speak HTTP"
    return ConnectionFailedError(what, retryable=retryable)
