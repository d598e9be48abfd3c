"""The same API and storage as `server` has, but each answer takes its time, as over a long line.

Bare of all that a server does besides, so that the line is what is waited for:
python -m benchmarks.slow ROOT PORT API_LATENCY_S STORAGE_LATENCY_S LINE_BYTES_S
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs

import google_crc32c

_TOKEN = b'{"access_token":"benchmark","expires_in":18000}'


class _Site:
    """What `server` made below `root`, as whole answers."""

    def __init__(self, root: Path, api_s: float, storage_s: float, line_bytes_s: float) -> None:
        self._www = root / "www"
        self._api_s = api_s
        self._storage_s = storage_s
        self._line_bytes_s = line_bytes_s
        self._line_free_at = 0.0
        self.stored = lru_cache(maxsize=4096)(self._stored)
        self._answers: Counter[str] = Counter()
        self._took_s: defaultdict[str, float] = defaultdict(float)

    def took(self, what: str, seconds: float) -> None:
        """Note how long an answer took: a timer is late, if only by half a millisecond."""
        self._answers[what] += 1
        self._took_s[what] += seconds

    def arrives_at(self, size_bytes: int, now: float) -> float:
        """Return when so many bytes have come through the line, which carries them in turn."""
        self._line_free_at = max(now, self._line_free_at) + size_bytes / self._line_bytes_s
        return self._line_free_at

    def answer(self, target: str) -> tuple[str, float, bytes]:
        """Return of which service an answer is, how long it is to take, and what it is."""
        path, _, query = target.partition("?")
        if path.startswith("/o/"):
            return "storage", self._storage_s, self.stored(path)
        if path == "/images/v1":
            (patient_id,) = parse_qs(query)["patient_id"]
            found = self._www / "api" / patient_id
            if not found.exists():
                found = found.with_name("none")
            return "api", self._api_s, _ok(found.read_bytes(), "application/json")
        if path == "/took":
            means = {what: self._took_s[what] / n for what, n in self._answers.items()}
            return "", 0.0, _ok(json.dumps(means).encode(), "application/json")
        return "", 0.0, _ok(_TOKEN, "application/json")

    def _stored(self, path: str) -> bytes:
        data = (self._www / path.removeprefix("/")).read_bytes()
        crc = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        return _ok(data, "image/jpeg", f"x-goog-hash: crc32c={crc}\r\n")


class _Connection(asyncio.Protocol):
    def __init__(self, site: _Site) -> None:
        self._site = site
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            what, delay_s, whole = self._site.answer(head.split(b" ", 2)[1].decode())
            loop = asyncio.get_running_loop()
            loop.call_later(delay_s, self._send, whole, what, loop.time())

    def _send(self, whole: bytes, what: str, began: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(self._site.arrives_at(len(whole), loop.time()), self._end, whole, what, began)

    def _end(self, whole: bytes, what: str, began: float) -> None:
        self._site.took(what, asyncio.get_running_loop().time() - began)
        if not self._transport.is_closing():
            self._transport.write(whole)


def _ok(body: bytes, media_type: str, more: str = "") -> bytes:
    head = f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n{more}"
    return f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body


async def _serve(site: _Site, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(site), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    served = _Site(Path(sys.argv[1]), *map(float, sys.argv[3:]))
    asyncio.run(_serve(served, int(sys.argv[2])))
