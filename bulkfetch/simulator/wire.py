"""Sends an answer, whole or broken in the ways that were asked for."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field, replace

from aiohttp import web

from bulkfetch.simulator.faults import Fault

__all__ = ["Reply", "distorted", "send"]

_LOGIN_PAGE = b"""<!doctype html>
<html><head><title>Sign in</title></head>
<body><h1>Your session has expired</h1>
<form action="/login"><input name="user"></form></body></html>
"""
_XML_ERROR = (
    b"<?xml version='1.0' encoding='UTF-8'?>"
    b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
)
_DRIP_INTERVAL_S = 0.05
_SETTLE_S = 0.02
"""Time for bytes to reach the client before the connection is reset under it."""

_LINGER_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing then sends a reset instead of an orderly end."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is ready to send."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = field(default=())
    """Pairs, since a header may come twice."""
    content_type: str = "application/json"


def distorted(reply: Reply, faults: list[Fault]) -> Reply:
    """The answer with its content changed as the faults ask; how it is sent is `send`'s affair."""
    for fault in faults:
        if fault.kind in _OTHER_REPLIES:
            reply = _OTHER_REPLIES[fault.kind]
        elif fault.kind in _OTHER_BODIES:
            reply = replace(reply, body=_OTHER_BODIES[fault.kind](reply.body))
        elif fault.kind == "redirect":
            reply = Reply(status=302, headers=(("Location", fault.value or ""),))
    return reply


async def send(request: web.Request, reply: Reply, faults: list[Fault]) -> web.StreamResponse:
    """Sends an answer as the first fault that is about sending asks, or else in one piece."""
    by_kind = {fault.kind: fault for fault in reversed(faults)}
    if "drop" in by_kind and by_kind["drop"].value is None:
        return _reset(request, web.StreamResponse())
    wire_kinds = by_kind.keys() & {"drop", "stall", "drip", "short", "chunked"}
    if not wire_kinds:
        response = web.Response(status=reply.status, body=reply.body)
        _set_headers(response, reply)
        return response
    return await _stream(request, reply, by_kind)


async def _stream(
    request: web.Request, reply: Reply, faults: dict[str, Fault]
) -> web.StreamResponse:
    body = memoryview(reply.body)
    response = web.StreamResponse(status=reply.status)
    _set_headers(response, reply)
    if "chunked" in faults:
        response.enable_chunked_encoding()
    else:
        response.content_length = len(body)
    await response.prepare(request)
    half = len(body) // 2
    if "drop" in faults:
        await response.write(body[: int(faults["drop"].number)])
        await asyncio.sleep(_SETTLE_S)
        return _reset(request, response)
    if "short" in faults:
        await response.write(body[:half])
        return _closed(request, response)
    if "stall" in faults:
        await response.write(body[:half])
        await asyncio.sleep(faults["stall"].number)
        body = body[half:]
    if "drip" in faults:
        step = max(1, int(faults["drip"].number * _DRIP_INTERVAL_S))
        interval_s = step / faults["drip"].number
        while len(body) > step:
            await response.write(body[:step])
            await asyncio.sleep(interval_s)
            body = body[step:]
    await response.write(body)
    await response.write_eof()
    return response


def _reset(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Ends the connection with a reset (RFC 9293, 3.5.2)."""
    if request.transport is not None:
        connection: socket.socket = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        request.transport.abort()
    return response


def _closed(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Ends the connection in good order, though bytes are still owed."""
    if request.transport is not None:
        request.transport.close()
    return response


def _set_headers(response: web.StreamResponse, reply: Reply) -> None:
    response.headers["Content-Type"] = reply.content_type
    for name, value in reply.headers:
        response.headers.add(name, value)


def _first_half(body: bytes) -> bytes:
    return body[: len(body) // 2]


def _flipped(body: bytes) -> bytes:
    """The bytes with one bit changed in the middle."""
    middle = len(body) // 2
    changed = bytes(byte ^ 0x01 for byte in body[middle : middle + 1])
    return body[:middle] + changed + body[middle + 1 :]


def _other_shape(body: bytes) -> bytes:
    """JSON that is an object where a list was due, and a list where an object was."""
    due = json.loads(body) if body else None
    return json.dumps({"items": {"0": due}} if isinstance(due, list) else [due, None]).encode()


_OTHER_REPLIES = {
    "empty": Reply(),
    "html": Reply(body=_LOGIN_PAGE, content_type="text/html"),
    "xml": Reply(body=_XML_ERROR, content_type="application/xml"),
    "bad-json": Reply(body=b"upstream connect error"),
}
_OTHER_BODIES = {
    "truncated-json": _first_half,
    "wrong-length": _first_half,
    "wrong-shape": _other_shape,
    "corrupt": _flipped,
}
