"""What goes over the wire, and what does not: proved by servers that write down every byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkfetch import transport as transport_module
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
from bulkfetch.settings import Settings
from bulkfetch.transport import _FOREIGN, Transport, _named_error, connect, expires_at, proxy_for

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
SAYS = "words of the server"


@dataclass(frozen=True)
class Request:
    """One request, as it came over the wire."""

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def target(self) -> str:
        return self.head.split(b"\r\n", 1)[0].split(b" ", 1)[1].rsplit(b" ", 1)[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:]
        pairs = (line.split(":", 1) for line in lines if line)
        return {name.strip().lower(): value.strip() for name, value in pairs}


@dataclass
class RawServer:
    """A server on loopback that answers each request by a function, byte for byte."""

    answer: Callable[[Request], Awaitable[bytes]]
    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(Request(head, b"").headers.get("content-length", 0))
                request = Request(head, await reader.readexactly(length))
                self.requests.append(request)
                answer = await self.answer(request)
                writer.write(answer)
                await writer.drain()
                if b"keep-alive" not in answer:
                    return
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self.serve(reader, writer))
        self.tasks.add(task)


@asynccontextmanager
async def raw_server(
    answer: bytes | Callable[[Request], Awaitable[bytes]] = OK,
) -> AsyncIterator[RawServer]:
    """Serve until the context ends; a connection lives on after an answer with `keep-alive`."""

    async def same(request: Request) -> bytes:
        assert isinstance(answer, bytes)
        return answer

    raw = RawServer(same if isinstance(answer, bytes) else answer)
    server = await asyncio.start_server(raw.accept, "127.0.0.1", 0)
    raw.port = server.sockets[0].getsockname()[1]
    try:
        yield raw
    finally:
        server.close()
        for task in raw.tasks:
            task.cancel()
        await asyncio.gather(*raw.tasks, return_exceptions=True)
        await asyncio.sleep(0)


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """An answer with its length, which keeps the connection open."""
    fields = {"Content-Length": str(len(body)), "Connection": "keep-alive", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def settings(api_url: str, **fields: Any) -> Settings:
    return Settings(**{"out": "unused", "timeout": 5, "api_url": api_url, **fields})


async def get(transport: Transport, url: str) -> bytes:
    answer = await transport.open_signed(url)
    try:
        return b"".join([part async for part in answer.parts()])
    finally:
        answer.close()


def descendants(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


ELSEWHERE = [
    *sorted({aiohttp.ClientError, *descendants(aiohttp.ClientError)}, key=str),
    TimeoutError, ssl.SSLError, ssl.SSLCertVerificationError, ssl.SSLEOFError, OSError,
    ConnectionResetError, BrokenPipeError, ValueError, UnicodeError,
]  # fmt: skip


@pytest.mark.parametrize("kind", ELSEWHERE, ids=lambda kind: kind.__qualname__)
def test_every_error_of_aiohttp_and_the_system_has_a_name_of_ours(
    kind: type[BaseException],
) -> None:
    error = kind.__new__(kind)
    error._certificate_error = ssl.SSLCertVerificationError()  # type: ignore[attr-defined]  # what the real one sets
    assert isinstance(error, _FOREIGN)
    named = _named_error(error, "the host")
    if issubclass(kind, TimeoutError):
        assert isinstance(named, TimedOutError)
    if issubclass(kind, aiohttp.ClientSSLError | ssl.SSLError):
        assert not named.retryable


def test_the_walk_over_errors_finds_those_of_today() -> None:
    assert len(ELSEWHERE) > 25
    assert aiohttp.ClientConnectorCertificateError in ELSEWHERE


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, AssertionError])
def test_cancellation_and_our_own_mistakes_keep_their_names(kind: type[BaseException]) -> None:
    assert not issubclass(kind, _FOREIGN)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been sent, without sending it."""
    urls: list[str] = []

    async def request(self: object, method: str, url: object, **_: object) -> None:
        urls.append(str(url))
        raise aiohttp.ClientConnectionError

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    return urls


@pytest.mark.parametrize(
    "url",
    [
        "https://storage.googleapis.com/bucket/o?X-Goog-Signature=aa",
        "https://bucket.storage.googleapis.com/o?X-Goog-Signature=aa",
        "https://a.dotted_bucket.storage.googleapis.com/o",
        "https://STORAGE.GoogleAPIs.com/o",
        "HTTPS://storage.googleapis.com/o",
        "https://storage.googleapis.com:443/o",
        "https://files.example/o",
        "https://xn--bcher-kva.example/o",
    ],
)
async def test_googles_storage_and_named_hosts_are_asked_by_https(
    dialled: list[str], url: str
) -> None:
    named = ["files.example", "XN--bcher-kva.example"]
    async with connect(settings("https://api.invalid", storage_host=named)) as transport:
        with pytest.raises(ConnectionFailedError):
            await get(transport, url)
    assert [sent.lower() for sent in dialled] == [url.lower().replace(":443", "")]


DENIED = [
    "http://storage.googleapis.com/o",
    "http://bucket.storage.googleapis.com/o",
    "ftp://storage.googleapis.com/o",
    "//storage.googleapis.com/o",
    "storage.googleapis.com/o",
    "https://storage.googleapis.com.evil.invalid/o",
    "https://storage.googleapis.com-evil.invalid/o",
    "https://evilstorage.googleapis.com/o",
    "https://storage.googleapis.com./o",
    "https://.storage.googleapis.com/o",
    "https://googleapis.com/o",
    "https://storage.googleapis.com@evil.invalid/o",
    "https://storage.googleapis.com:443@evil.invalid/o",
    "https://user:password@storage.googleapis.com/o",
    "https://user@storage.googleapis.com/o",
    "https://@storage.googleapis.com/o",
    "https://storage.googleapis.com\\@evil.invalid/o",
    "https://evil.invalid\\.storage.googleapis.com/o",
    "https://evil.invalid\\@storage.googleapis.com/o",
    "https://evil.invalid/.storage.googleapis.com",
    "https://evil.invalid?.storage.googleapis.com",
    "https://evil.invalid#.storage.googleapis.com",
    "https://evil.invalid;.storage.googleapis.com/o",
    "https://evil.invalid%2F.storage.googleapis.com/o",
    "https://evil.invalid%00.storage.googleapis.com/o",
    "https://evil.invalid\0.storage.googleapis.com/o",
    "https://evil.invalid .storage.googleapis.com/o",
    "https://evil.invalid\t.storage.googleapis.com/o",
    "https://evil.invalid\uff0f.storage.googleapis.com/o",
    "https://storage\u3002googleapis.com/o",
    "https://\uff53torage.googleapis.com/o",
    "https://st\u043erage.googleapis.com/o",
    "https://xn--strage-yqf.googleapis.com/o",
    "https://xn--storage-.googleapis.com/o",
    "https://storage.googleapis.com:99999/o",
    "https://storage.googleapis.com:port/o",
    "https://storage.googleapis.com/a b",
    "https://storage.googleapis.com/o HTTP/1.1\r\nX-Evil: 1",
    "https://storage.googleapis.com/\ud800",
    "https://[::1",
    "https://xn--a.storage.googleapis.com/o",
    "https://storage.googleapis.com[::1]@/o",
    "https://[::ffff:127.0.0.1]/o",
    "https:///o",
    "https://",
    "",
    "\0",
    "http://127.0.0.1/o",
    "https://127.0.0.1/o",
    "http://localhost/o",
    "http://[::1]/o",
    "http://169.254.169.254/computeMetadata/v1/",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("url", DENIED, ids=ascii)
async def test_no_other_host_is_asked_however_it_is_written(dialled: list[str], url: str) -> None:
    async with connect(settings("https://api.invalid")) as transport:
        with pytest.raises(HostDeniedError) as caught:
            await get(transport, f"{url}?X-Goog-Signature=aa" if url.startswith("http") else url)
    assert dialled == []
    assert not caught.value.retryable
    assert "X-Goog-Signature" not in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["127.1", "0.0.0.0", "2130706433", "localhost.", "localhost.evil.invalid", "10.0.0.1"]
)
async def test_a_loopback_api_opens_loopback_alone(dialled: list[str], host: str) -> None:
    async with connect(settings("http://127.0.0.1:1")) as transport:
        for scheme in ("http", "https"):
            with pytest.raises(HostDeniedError):
                await get(transport, f"{scheme}://{host}/o")
    assert dialled == []


async def test_loopback_storage_is_not_even_connected_to_when_the_api_is_elsewhere() -> None:
    async with raw_server() as server, connect(settings("https://api.invalid")) as transport:
        port = server.port
        for url in (
            f"http://127.0.0.1:{port}/o",
            f"http://localhost:{port}/o",
            # The C library reads a name up to its NUL.
            f"https://127.0.0.1\0.storage.googleapis.com:{port}/o",
        ):
            with pytest.raises(HostDeniedError):
                await get(transport, url)
        assert server.connections == 0


@pytest.mark.parametrize(
    "target",
    [
        "/bucket/o?X-Goog-Credential=a%40b.invalid%2F20260101%2Fauto%2Fstorage&X-Goog-Signature=0f",
        "/%40%2F%2f%7E~+%2B?a=%40&b=%2F&c=+&d=%20&e=~",
        "/o?empty=&none&=&&empty=",
        "/o?twice=1&twice=2&twice=1",
        "/o?b=1&a=2",
        "/%E2%82%AC/%e2%82%ac?\u20ac=%u20AC&%zz=%",
        "/a/../b/./c//d/%2e%2e/",
        "//double//slash",
        "/;p=1?q='()*!$,;:@/?[]",
        "/O'Brien's%20card.jpg?response-content-disposition=inline%3B%20filename%3D%22x%22",
    ],
)
async def test_a_signed_url_is_sent_byte_for_byte(target: str) -> None:
    async with raw_server() as server, connect(settings(server.url)) as transport:
        assert await get(transport, server.url + target) == b"ok"
    assert [request.target for request in server.requests] == [target]


async def test_storage_gets_no_credential_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine localhost login somebody password hunter2\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    cookie = http(b"ok", Set_Cookie="session=abc; Path=/")
    async with (
        raw_server(cookie) as server,
        connect(settings(server.url, token="a-token")) as transport,
    ):
        url = f"http://localhost:{server.port}"  # an address alone would keep no cookie anyway
        await transport.ask("GET", url, headers={"Authorization": "Bearer a-token"})
        for _ in range(2):
            await get(transport, f"{url}/o?X-Goog-Signature=aa")
        await transport.ask("GET", url)
    for request in server.requests[1:3]:
        assert set(request.headers) == {"host", "user-agent", "accept", "accept-encoding"}
        assert request.method == "GET"
    assert "cookie" not in server.requests[3].headers
    assert "authorization" not in server.requests[3].headers


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm"])
async def test_a_redirect_of_the_api_is_not_followed(status: str) -> None:
    async with raw_server() as other:
        moved = http(b"", status, Location=f"{other.url}/elsewhere")
        async with raw_server(moved) as server, connect(settings(server.url)) as transport:
            with pytest.raises(StatusError) as caught:
                await transport.ask("GET", server.url, headers={"Authorization": "Bearer t"})
        assert caught.value.status == int(status[:3])
        assert not caught.value.retryable
        assert other.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.invalid/o",
        "//evil.invalid/o",
        "http://user:password@{there}/o",
        "https://storage.googleapis.com@evil.invalid/o",
        "http://storage.googleapis.com/o",
        "/elsewhere",
        "\\\\evil.invalid",
    ],
)
async def test_a_redirect_of_storage_leads_to_no_host_that_is_not_on_the_list(
    location: str,
) -> None:
    async with raw_server() as other:
        there = location.format(there=f"127.0.0.1:{other.port}")
        moved = http(b"", "302 Found", Location=there)
        async with raw_server(moved) as server, connect(settings(server.url)) as transport:
            with pytest.raises(HostDeniedError):
                await get(transport, f"{server.url}/o")
        assert len(server.requests) == 1
        assert other.connections == 0


async def test_storage_that_redirects_for_ever_is_left() -> None:
    async def again(request: Request) -> bytes:
        return http(b"", "302 Found", Location=f"{server.url}/o")

    async with raw_server(again) as server, connect(settings(server.url)) as transport:
        with pytest.raises(StatusError):
            await get(transport, f"{server.url}/o")
        assert len(server.requests) < 10


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_loopback_never_goes_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    async with raw_server() as proxy, raw_server() as server:
        monkeypatch.setenv(variable, proxy.url)
        async with connect(settings(server.url)) as transport:
            await transport.ask("GET", server.url)
            await get(transport, f"{server.url}/o")
        assert proxy.connections == 0
        assert len(server.requests) == 2


async def test_other_hosts_go_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = http(SAYS.encode(), "407 Proxy Authentication Required")
    async with raw_server(refusal) as proxy, connect(settings("https://api.invalid")) as transport:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(FetchError) as caught:
            await transport.ask("GET", "https://api.invalid/images/v1")
    assert [(r.method, r.target) for r in proxy.requests] == [("CONNECT", "api.invalid:443")]
    assert SAYS not in str(caught.value)


def test_no_proxy_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "direct.invalid")
    found = [
        proxy_for("https", host)
        for host in ("direct.invalid", "a.direct.invalid", "other.invalid", "localhost")
    ]
    assert found == [None, None, "http://proxy.invalid:3128", None]


def test_a_proxy_that_speaks_no_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:secret@proxy.invalid:1080")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY names a proxy of socks5"):
        proxy_for("https", "api.invalid")
    assert proxy_for("https", "localhost") is None


async def test_the_rate_limit_lets_one_request_go_and_has_the_next_wait() -> None:
    async with (
        raw_server() as server,
        connect(settings(server.url, rate_limit=0.1)) as transport,
    ):
        asking = [asyncio.create_task(transport.ask("GET", server.url)) for _ in range(5)]
        done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(waiting, timeout=0.1)
        assert len(server.requests) == len(done) == 1
        # Storage is not the API: it has no rate.
        await get(transport, f"{server.url}/o")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert len(server.requests) == 2


async def test_every_request_to_the_api_takes_its_turn_at_the_rate_limit() -> None:
    async with (
        raw_server(http(b"ok")) as server,
        connect(settings(server.url, rate_limit=1000)) as transport,
    ):
        assert transport.pace.rate == 1000
        turns = 0
        turn = transport.pace.turn

        async def count() -> None:
            nonlocal turns
            turns += 1
            await turn()

        transport.pace.turn = count  # type: ignore[method-assign]  # counted, not waited for
        await asyncio.gather(*(transport.ask("GET", server.url) for _ in range(20)))
    assert turns == len(server.requests) == 20


async def test_at_most_query_concurrency_requests_are_under_way() -> None:
    under_way = peak = 0
    full, go = asyncio.Event(), asyncio.Event()

    async def hold(request: Request) -> bytes:
        nonlocal under_way, peak
        under_way += 1
        peak = max(peak, under_way)
        if under_way == 3:
            full.set()
        if request.target != "/storage":
            await go.wait()
        under_way -= 1
        return OK

    async with (
        raw_server(hold) as server,
        connect(settings(server.url, query_concurrency=3)) as transport,
    ):
        asking = [asyncio.create_task(transport.ask("GET", server.url)) for _ in range(12)]
        await asyncio.wait_for(full.wait(), 5)
        await asyncio.wait(asking, timeout=0.05)
        assert len(server.requests) == peak == 3
        assert await get(transport, f"{server.url}/storage") == b"ok"
        peak = 3
        go.set()
        await asyncio.gather(*asking)
    assert peak == 3
    assert len(server.requests) == 13


async def test_a_slot_is_given_back_after_failure_and_cancellation() -> None:
    async def never(request: Request) -> bytes:
        if request.target == "/never":
            await asyncio.Event().wait()
        return http(b"", "500 No") if request.target == "/fails" else OK

    async with (
        raw_server(never) as server,
        connect(settings(server.url, query_concurrency=1)) as transport,
    ):
        with pytest.raises(StatusError):
            await transport.ask("GET", f"{server.url}/fails")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(transport.ask("GET", f"{server.url}/never"), 0.05)
        assert await transport.ask("GET", server.url) == b"ok"


@pytest.mark.parametrize("of", ["api", "storage"])
async def test_one_broken_connection_is_one_request_on_the_wire(of: str) -> None:
    async def once(request: Request) -> bytes:
        return b"" if len(server.requests) > 1 else http(b"ok")

    async with raw_server(once) as server, connect(settings(server.url)) as transport:

        async def ask() -> bytes:
            if of == "api":
                return await transport.ask("GET", server.url)
            return await get(transport, f"{server.url}/o")

        assert await ask() == b"ok"
        with pytest.raises(ConnectionFailedError) as caught:
            await ask()
        assert server.connections == 1, "the second request must meet a connection that was kept"
    assert len(server.requests) == 2
    assert caught.value.retryable


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
    ids=lambda answer: ascii(answer[:50]),
)
async def test_an_answer_that_is_no_whole_http_is_a_retryable_failure(answer: bytes) -> None:
    async with raw_server(answer) as server, connect(settings(server.url)) as transport:
        for asking in (transport.ask("GET", server.url), get(transport, f"{server.url}/o")):
            with pytest.raises(FetchError) as caught:
                await asking
            assert caught.value.retryable
        assert len(server.requests) == 2


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_silence_is_a_timeout(sent: bytes) -> None:
    async def stall(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        RawServer.accept(server, reader, writer)

    async with raw_server(stall) as server:
        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with connect(settings(url, timeout=0.2)) as transport:
            for asking in (transport.ask("GET", url), get(transport, f"{url}/o")):
                with pytest.raises(TimedOutError) as caught:
                    await asking
                assert caught.value.retryable
        listener.close()


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (204, StatusError, False),
        (206, StatusError, False),
        (400, SignedURLError, True),
        (401, SignedURLError, True),
        (403, SignedURLError, True),
        (404, StatusError, False),
        (408, StatusError, True),
        (416, StatusError, False),
        (429, StatusError, True),
        (500, StatusError, True),
        (501, StatusError, False),
        (503, StatusError, True),
        (505, StatusError, False),
        (599, StatusError, True),
    ],
)
async def test_storages_status_decides_and_its_words_are_not_repeated(
    status: int, kind: type[FetchError], retryable: bool
) -> None:
    body = b"" if status == 204 else f"<Error>{SAYS}</Error>".encode()
    refusal = http(body, f"{status} {SAYS}", Retry_After="7", X_Says=SAYS)
    async with raw_server(refusal) as server, connect(settings(server.url)) as transport:
        with pytest.raises(FetchError) as caught:
            await get(transport, f"{server.url}/o?X-Goog-Signature=aa")
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert str(status) in str(caught.value)
    assert SAYS not in str(caught.value)
    assert "X-Goog-Signature" not in str(caught.value)
    assert caught.value.retry_after_s == (7 if kind is StatusError else None)


async def test_retry_after_as_a_date_is_read_by_the_clock_that_was_passed_in() -> None:
    refusal = http(b"", "503 Busy", Retry_After="Thu, 01 Jan 1970 00:20:00 GMT")
    async with (
        raw_server(refusal) as server,
        connect(settings(server.url), clock=lambda: 1000.0) as transport,
    ):
        with pytest.raises(StatusError) as caught:
            await transport.ask("GET", server.url)
    assert caught.value.retry_after_s == 200.0


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "LARGEST_ANSWER_BYTES", 1000)
    for size, whole in ((1000, True), (1001, False)):
        async with (
            raw_server(http(b"x" * size)) as server,
            connect(settings(server.url)) as transport,
        ):
            if whole:
                assert len(await transport.ask("GET", server.url)) == size
                continue
            with pytest.raises(BadResponseError) as caught:
                await transport.ask("GET", server.url)
            assert not caught.value.retryable


async def test_a_body_is_handed_over_as_stored_not_decoded() -> None:
    stored = b"\x1f\x8b these bytes are not even gzip"
    async with (
        raw_server(http(stored, Content_Encoding="gzip")) as server,
        connect(settings(server.url)) as transport,
    ):
        assert await get(transport, f"{server.url}/o") == stored


@pytest.mark.parametrize(
    ("query", "end"),
    [
        ("X-Goog-Date=20231114T221320Z&X-Goog-Expires=900&X-Goog-Signature=ab", 1_700_000_900.0),
        ("GoogleAccessId=x%40y&Expires=1700000900&Signature=a%2Fb", 1_700_000_900.0),
        ("X-Goog-Date=20231114T221320Z", None),
        ("X-Goog-Date=yesterday&X-Goog-Expires=900", None),
        ("X-Goog-Date=20231114T221320Z&X-Goog-Expires=soon", None),
        ("Expires=", None),
        ("", None),
    ],
)
def test_the_end_of_a_signed_url_is_read_where_it_tells(query: str, end: float | None) -> None:
    assert expires_at(f"https://storage.googleapis.com/bucket/object?{query}") == end


@given(st.text())
def test_no_form_of_url_breaks_the_reading_of_its_end(text: str) -> None:
    for url in (text, f"https://storage.googleapis.com/o?X-Goog-Date={text}&X-Goog-Expires={text}"):
        expires_at(url)
        expires_at(f"https://storage.googleapis.com/o?Expires={text}")
