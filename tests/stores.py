"""What the tests of object stores share: a store on loopback, and a proxy before it that fails."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import subprocess
import sys
import threading
import urllib.request
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4
from xml.etree import ElementTree as ET

import pytest
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from obstore.store import S3Store
from yarl import URL

SECRET = "secret-that-nobody-may-print"
"""Part of every environment that reaches a store."""

SIGNATURE_WORDS = {
    "Message": "The-request-signature-we-calculated",
    "AWSAccessKeyId": "AKIATHEKEYTHATISSHOWN",
    "StringToSign": "AWS4-HMAC-SHA256-20260203T040506Z",
    "SignatureProvided": "5ca1ab1e0ff1ce",
    "CanonicalRequest": "PUT-x-amz-security-token:session-token",
}
"""What no line and no file may hold of such an answer."""

# moto answers until its standard input is closed, so that it dies with whoever started it. Its own
# server looks through all services of Amazon for each request; here S3 is the only one.
_MOTO = """
import logging
import sys
from threading import Thread
from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = create_backend_app("s3")
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
Thread(target=server.serve_forever, daemon=True).start()
print(server.port, flush=True)
sys.stdin.read()
"""
_HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "Content-Length")


@contextmanager
def serving_s3() -> Iterator[str]:
    """Serve an empty S3 from a process of its own, and give its URL."""
    command = [sys.executable, "-c", _MOTO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


@dataclass(frozen=True)
class Asked:
    """A request as it came, and the answer's status: 0 where the connection was cut instead."""

    what: str
    headers: CIMultiDict[str]
    status: int


@dataclass(frozen=True)
class Answer:
    """What is answered to a request."""

    status: int = 200
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""


Forward = Callable[[bytes], Awaitable[Answer]]
"""Asks the store what the client asked, with this body."""

Fault = Callable[[bytes, Forward], Awaitable[Answer]]
"""Answers a request with this body, or raises `Cut`."""


class Cut(Exception):  # noqa: N818  (what happens to the connection, not what went wrong)
    """The connection is cut, after the head and some bytes of an answer if there is one."""

    def __init__(self, answer: Answer | None = None, sent: int = 0) -> None:
        self.answer = answer
        self.sent = sent


def refuse(status: int, code: str) -> Fault:
    """An error of the store in place of an answer: `refuse(503, "SlowDown")`."""

    async def fault(_: bytes, forward: Forward) -> Answer:
        return _refusal(status, code)

    return fault


async def refuse_signature(_: bytes, forward: Forward) -> Answer:
    """What S3 answers to a wrong key: it quotes what was signed, and whose key it is."""
    told = "".join(f"<{name}>{word}</{name}>" for name, word in SIGNATURE_WORDS.items())
    body = f"<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code>{told}</Error>"
    return Answer(403, CIMultiDict({"Content-Type": "application/xml"}), body.encode())


async def hang_up(_: bytes, forward: Forward) -> Answer:
    """Nothing is done, and the connection is cut."""
    raise Cut


async def forget(body: bytes, forward: Forward) -> Answer:
    """It is done, but the connection is cut before the answer."""
    await forward(body)
    raise Cut


async def break_off(body: bytes, forward: Forward) -> Answer:
    """The connection is cut in the middle of the answer's body."""
    answer = await forward(body)
    raise Cut(answer, len(answer.body) // 2)


async def lose(_: bytes, forward: Forward) -> Answer:
    """Nothing is done, and the answer says that it was."""
    return Answer(headers=CIMultiDict({"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'}))


async def damage(body: bytes, forward: Forward) -> Answer:
    """The last byte of the body is another one when the store gets it."""
    return await forward(body[:-1] + bytes([body[-1] ^ 1]) if body else body)


def delay(seconds: float) -> Fault:
    """The answer comes late."""

    async def fault(body: bytes, forward: Forward) -> Answer:
        await asyncio.sleep(seconds)
        return await forward(body)

    return fault


@dataclass
class Rule:
    """A fault for requests whose `METHOD /path?query` matches: after `skip` of them, `times`."""

    pattern: str
    fault: Fault
    skip: int = 0
    times: float = 1

    def strikes(self, what: str) -> bool:
        """Whether the fault is for this request, which counts as one of them."""
        if not self.times or not re.search(self.pattern, what):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class FaultProxy:
    """Passes requests on to a store, byte for byte with the headers as signed, but for faults.

    A body that is not the one whose SHA-256 was sent with it is refused, as S3 does and moto does
    not.
    `rules` may be changed at any time; the first that strikes a request is the one that counts.
    """

    def __init__(self, store_url: str) -> None:
        self.rules: list[Rule] = []
        self.asked: list[Asked] = []
        self._store_url = store_url
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def strike(self, pattern: str, fault: Fault, *, skip: int = 0, times: float = 1) -> None:
        """Let a fault strike requests that match, after some of them, so many times."""
        self.rules.append(Rule(pattern, fault, skip, times))

    def count(self, pattern: str) -> int:
        """How many requests matched so far."""
        return sum(bool(re.search(pattern, asked.what)) for asked in self.asked)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = web.Server(self._answer)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        # moto closes each connection, and a connector that keeps them would trip over that.
        connector = TCPConnector(force_close=True, limit=0)
        async with ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        ) as self._session:
            self._started.set()
            await self._stop.wait()
            # As in `Simulator.stop`.
            for _ in range(3):
                await asyncio.sleep(0)
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        what = f"{request.method} {request.raw_path}"
        body = b"".join([chunk async for chunk in request.content.iter_any()])

        async def forward(body: bytes) -> Answer:
            return await self._forward(request.method, request.raw_path, headers, body)

        headers = CIMultiDict(request.headers)
        rule = next((rule for rule in self.rules if rule.strikes(what)), None)
        try:
            answer = await (rule.fault(body, forward) if rule else forward(body))
        except Cut as cut:
            self.asked.append(Asked(what, headers, 0))
            return await self._cut(request, cut)
        self.asked.append(Asked(what, headers, answer.status))
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def _cut(self, request: web.BaseRequest, cut: Cut) -> web.StreamResponse:
        response = web.StreamResponse()
        if cut.answer is not None:
            response.set_status(cut.answer.status)
            response.headers.extend(cut.answer.headers)
            response.content_length = len(cut.answer.body)
            await response.prepare(request)
            await response.write(cut.answer.body[: cut.sent])
        if request.transport is not None:
            request.transport.close()
        return response

    async def _forward(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        if not _is_as_told(headers, body):
            return _refusal(400, "BadDigest")
        url = URL(self._store_url + target, encoded=True)
        passed = CIMultiDict(headers)
        for name in _HOP_BY_HOP:
            passed.popall(name, None)
        async with self._session.request(
            method, url, headers=passed, data=io.BytesIO(body), allow_redirects=False
        ) as response:
            answered = CIMultiDict(response.headers)
            for name in _HOP_BY_HOP if method != "HEAD" else _HOP_BY_HOP[:-1]:
                answered.popall(name, None)
            return Answer(response.status, answered, await response.read())


def _refusal(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return Answer(status, CIMultiDict({"Content-Type": "application/xml"}), body.encode())


def _is_as_told(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a body has the SHA-256 that is signed with it, and the one that is to be kept."""
    digest = hashlib.sha256(body)
    signed = headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    kept = headers.get("x-amz-checksum-sha256")
    return signed in ("UNSIGNED-PAYLOAD", digest.hexdigest()) and (
        kept is None or b64decode(kept) == digest.digest()
    )


class GoogleProxy(FaultProxy):
    """Google Cloud Storage's XML API before an S3 store: conditions by generation.

    A generation is given to each object that is written by way of this proxy.
    """

    def __init__(self, store_url: str) -> None:
        super().__init__(store_url)
        self._generations: dict[str, str] = {}
        self._given = 0
        # A condition and the write that depends on it are one.
        self._turn = asyncio.Lock()

    async def _forward(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        key, _, query = target.partition("?")
        passed = CIMultiDict(headers)
        wanted = passed.pop("x-goog-if-generation-match", None)
        if source := passed.pop("x-goog-copy-source", None):
            passed["x-amz-copy-source"] = source
        async with self._turn:
            if wanted is not None and wanted != self._generations.get(key, "0"):
                return _refusal(412, "PreconditionFailed")
            if method == "DELETE" and not query and self._generations.pop(key, None) is None:
                return _refusal(404, "NoSuchKey")
            answer = await super()._forward(method, target, passed, body)
            if answer.status == 200 and _writes(method, query):
                self._given += 1
                self._generations[key] = str(self._given)
        if (generation := self._generations.get(key)) is not None:
            answer.headers["x-goog-generation"] = generation
        return answer


def _writes(method: str, query: str) -> bool:
    """Whether a request makes an object: a part of one does not, nor does asking for an upload."""
    return (method == "PUT" and not query) or (method == "POST" and query.startswith("uploadId="))


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and how to reach it by way of a proxy."""

    name: str
    url: str
    environment: Mapping[str, str]
    proxy: FaultProxy
    store_url: str

    def export(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put what reaches it into this process's environment, for as long as a test lasts."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def contents(self) -> dict[str, bytes]:
        """What is there indeed: read past the proxy."""
        store = S3Store(
            self.name,
            endpoint=self.store_url,
            region="us-east-1",
            access_key_id="test",
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )
        paths = [meta["path"] for chunk in store.list() for meta in chunk]
        return {path: bytes(store.get(path).bytes()) for path in paths}

    def copy_to(self, directory: Path) -> None:
        """Copy all of it to a disk, as any tool would."""
        for path, data in self.contents().items():
            there = directory / path
            there.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            there.write_bytes(data)

    def unfinished_uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        with urllib.request.urlopen(f"{self.store_url}/{self.name}?uploads") as answer:
            uploads = ET.fromstring(answer.read())
        return [key.text or "" for key in uploads.findall("{*}Upload/{*}Key")]


@contextmanager
def s3_bucket(store_url: str) -> Iterator[Bucket]:
    """Make a bucket of S3."""
    with FaultProxy(store_url) as proxy:
        yield _made(
            proxy,
            store_url,
            "s3",
            {
                "AWS_ENDPOINT_URL": proxy.url,
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": SECRET,
            },
        )


@contextmanager
def google_bucket(store_url: str) -> Iterator[Bucket]:
    """Make a bucket of Google Cloud Storage."""
    with GoogleProxy(store_url) as proxy:
        yield _made(
            proxy,
            store_url,
            "gs",
            {
                "GOOGLE_BASE_URL": proxy.url,
                "GOOGLE_ALLOW_HTTP": "true",
                "GOOGLE_BEARER_TOKEN": SECRET,
            },
        )


def _made(proxy: FaultProxy, store_url: str, scheme: str, environment: Mapping[str, str]) -> Bucket:
    # No hyphen: obstore's client of Google encodes it, which moto does not undo.
    name = f"bucket{uuid4().hex}"
    request = urllib.request.Request(f"{store_url}/{name}", method="PUT")
    with urllib.request.urlopen(request):
        pass
    return Bucket(name, f"{scheme}://{name}", environment, proxy, store_url)
