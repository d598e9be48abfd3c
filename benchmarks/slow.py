"""The same API and storage as `server` has, but each answer takes its time, as over a long line.

Bare of all that a server does besides, so that the line is what is waited for:
python -m benchmarks.slow ROOT PORT API_LATENCY_S STORAGE_LATENCY_S
"""

from __future__ import annotations

import asyncio
import base64
import sys
from functools import lru_cache
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs

import google_crc32c

_TOKEN = b'{"access_token":"benchmark","expires_in":18000}'


class _Site:
    """What `server` made below `root`, as whole answers."""

    def __init__(self, root: Path, api_s: float, storage_s: float) -> None:
        self._www = root / "www"
        self._api_s = api_s
        self._storage_s = storage_s
        self.stored = lru_cache(maxsize=4096)(self._stored)

    def answer(self, target: str) -> tuple[float, bytes]:
        """Return how long an answer is to take, and what it is."""
        path, _, query = target.partition("?")
        if path.startswith("/o/"):
            return self._storage_s, self.stored(path)
        if path == "/images/v1":
            (patient_id,) = parse_qs(query)["patient_id"]
            found = self._www / "api" / patient_id
            if not found.exists():
                found = found.with_name("none")
            return self._api_s, _ok(found.read_bytes(), "application/json")
        return 0.0, _ok(_TOKEN, "application/json")

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
            delay_s, whole = self._site.answer(head.split(b" ", 2)[1].decode())
            asyncio.get_running_loop().call_later(delay_s, self._send, whole)

    def _send(self, whole: bytes) -> None:
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
    served = _Site(Path(sys.argv[1]), float(sys.argv[3]), float(sys.argv[4]))
    asyncio.run(_serve(served, int(sys.argv[2])))
