"""A plain HTTP client for the simulator, with which the tests look at what is really sent."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from bulkfetch.simulator import Simulator


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of an answer that came whole."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class Caller:
    """Calls one simulator; API calls carry a token, storage calls never do."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self._session = session
        self.token = simulator.issue_token()

    async def api(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Answer:
        sent = {"Authorization": f"Bearer {self.token}"} if headers is None else headers
        url = URL(self.simulator.api_url + path).update_query(query or {})
        return await self.send(method, url, headers=sent, json=body)

    async def fetch(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return await self.send(method, URL(url, encoded=True), headers=headers or {})

    async def send(self, method: str, url: URL, **options: Any) -> Answer:
        async with self._session.request(method, url, allow_redirects=False, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def images(self, **query: str) -> list[dict[str, Any]]:
        answer = await self.api("/images/v1", query)
        assert answer.status == 200, answer.text
        images: list[dict[str, Any]] = answer.json
        return images

    async def image(self, *, status: str = "UPLOADED") -> dict[str, Any]:
        """The first image of this status."""
        return next(i for i in await self.images() if i["status"] == status)


Serve: TypeAlias = Callable[..., Awaitable[Caller]]
