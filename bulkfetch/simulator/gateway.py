"""What every request passes through: counts, latency, faults, rate limit, bearer check."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate

from aiohttp import hdrs, web

from bulkfetch.simulator.api import Api, api_error
from bulkfetch.simulator.config import SimulatorConfig
from bulkfetch.simulator.faults import Fault, FaultPlan
from bulkfetch.simulator.storage import Storage, xml_error
from bulkfetch.simulator.tokens import Tokens
from bulkfetch.simulator.traffic import RequestRecord, Traffic
from bulkfetch.simulator.wire import Reply, distorted, send

__all__ = ["Gateway", "Handler"]

Handler = Callable[[web.Request], Awaitable[Reply]]

_NO_ANSWER = 0


class Gateway:
    """Wraps the API's and the storage's answers into aiohttp handlers."""

    def __init__(
        self,
        config: SimulatorConfig,
        tokens: Tokens,
        faults: FaultPlan,
        traffic: Traffic,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._faults = faults
        self._traffic = traffic
        self._clock = clock
        self._limit = None if config.rate_limit is None else _RateLimit(config.rate_limit)

    async def serve_token(self, api: Api, request: web.Request) -> web.StreamResponse:
        """Serves the token endpoint, which needs no bearer token and has no rate limit."""

        async def answer(faults: list[Fault]) -> Reply:
            return self._failure(faults, api_error) or await api.answer(api.token, request)

        return await self._serve("token", "token", request, 0, answer)

    async def serve_api(
        self, api: Api, handler: Handler, endpoint: str, target: str, request: web.Request
    ) -> web.StreamResponse:
        """Serves an endpoint of the pre-encounter API; `target` is its name in fault rules."""

        async def answer(faults: list[Fault]) -> Reply:
            failure = self._failure(faults, api_error)
            if failure is not None:
                return failure
            wait_s = self._limit.wait_s() if self._limit else 0.0
            if wait_s:
                refusal = api_error(429, "too many requests")
                return _with_retry_after(refusal, str(math.ceil(wait_s)))
            authorization = request.headers.get(hdrs.AUTHORIZATION, "")
            if any(fault.kind == "token-death" for fault in faults):
                self._tokens.revoke(authorization.partition(" ")[2])
            if not self._tokens.is_valid(authorization):
                return api_error(401, "the bearer token is missing, expired or revoked")
            return await api.answer(handler, request)

        return await self._serve(endpoint, target, request, self._config.api_latency_s, answer)

    async def serve_storage(self, storage: Storage, request: web.Request) -> web.StreamResponse:
        """Serves an object."""

        async def answer(faults: list[Fault]) -> Reply:
            failure = self._failure(faults, xml_error)
            return failure or await storage.answer(request, faults)

        endpoint = "storage_put" if request.method == hdrs.METH_PUT else "storage"
        latency_s = self._config.storage_latency_s
        return await self._serve(endpoint, "storage", request, latency_s, answer)

    async def _serve(
        self,
        endpoint: str,
        target: str,
        request: web.Request,
        latency_s: float,
        answer: Callable[[list[Fault]], Awaitable[Reply]],
    ) -> web.StreamResponse:
        with self._traffic.request(endpoint):
            faults = self._faults.strike(target, _resource(target, request))
            latency_s += sum(fault.number for fault in faults if fault.kind == "latency")
            if latency_s:
                await asyncio.sleep(latency_s)
            reply = distorted(await answer(faults), faults)
            dropped = any(fault.kind == "drop" and fault.value is None for fault in faults)
            self._note(endpoint, request, _NO_ANSWER if dropped else reply.status)
            try:
                return await send(request, reply, faults)
            except ConnectionError:
                return web.Response()  # to nobody: the client went away meanwhile

    def _failure(
        self, faults: list[Fault], error: Callable[[int, str | None], Reply]
    ) -> Reply | None:
        """The answer that a fault of a status asks for, worded by `error`."""
        for fault in faults:
            if fault.status is not None:
                reply = error(fault.status, None)
                if fault.value is None:
                    return reply
                # A date has whole seconds: the next but one is surely in the future.
                at_date = formatdate(math.floor(self._clock()) + 2, usegmt=True)
                return _with_retry_after(reply, at_date if fault.value == "date" else fault.value)
        return None

    def _note(self, endpoint: str, request: web.Request, status: int) -> None:
        self._traffic.statuses[status] += 1
        if not self._config.record_requests:
            return
        headers, query = request.headers, request.query
        self._traffic.log.append(
            RequestRecord(
                at=self._clock(),
                endpoint=endpoint,
                method=request.method,
                path=request.path,
                patient_id=query.get("patient_id"),
                coverage_id=query.get("coverage_id"),
                range=headers.get(hdrs.RANGE),
                if_range=headers.get(hdrs.IF_RANGE),
                accept_encoding=headers.get(hdrs.ACCEPT_ENCODING),
                has_authorization=hdrs.AUTHORIZATION in headers,
                status=status,
            )
        )


class _RateLimit:
    """A bucket of one second's worth of requests."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate)
        self._left = self._most
        self._at = time.monotonic()

    def wait_s(self) -> float:
        """0 when the request may pass, and otherwise how long until one may."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


def _resource(target: str, request: web.Request) -> str:
    """What a rule's count is by: an object, or an API path with its query."""
    return request.path if target == "storage" else request.path_qs


def _with_retry_after(reply: Reply, value: str) -> Reply:
    return Reply(reply.status, reply.body, (("Retry-After", value),), reply.content_type)
