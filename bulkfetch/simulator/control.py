"""Steering a running simulator over HTTP, for a test that has it in another process.

`GET`, `POST` and `DELETE /simulator/faults` show, add and clear rules; `GET` and `DELETE
/simulator/requests` show and forget what was asked; `POST /simulator/images/{id}` lays fields over
an image. No token is needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from aiohttp import web

from bulkfetch.simulator.catalog import Catalog
from bulkfetch.simulator.faults import FaultPlan
from bulkfetch.simulator.traffic import Traffic

__all__ = ["Control"]


class Control:
    """The handlers under `/simulator`."""

    def __init__(self, faults: FaultPlan, traffic: Traffic, catalog: Catalog) -> None:
        self._faults = faults
        self._traffic = traffic
        self._catalog = catalog

    def routes(self) -> list[web.RouteDef]:
        """The routes to add to the API's application."""
        return [
            web.get("/simulator/faults", self._show_faults),
            web.post("/simulator/faults", self._add_faults),
            web.delete("/simulator/faults", self._clear_faults),
            web.get("/simulator/requests", self._show_requests),
            web.delete("/simulator/requests", self._clear_requests),
            web.post("/simulator/images/{id}", self._patch_image),
        ]

    async def _show_faults(self, _request: web.Request) -> web.Response:
        return web.json_response({"faults": [str(rule) for rule in self._faults.rules]})

    async def _add_faults(self, request: web.Request) -> web.Response:
        """Adds `{"faults": ["storage:503x1", ...]}`; all of them or, when one is wrong, none."""
        try:
            rules = json.loads(await request.text())["faults"]
        except (KeyError, TypeError, ValueError):
            rules = None
        if not isinstance(rules, list):
            return web.json_response({"message": 'send {"faults": ["..."]}'}, status=400)
        try:
            self._faults.add(*(str(rule) for rule in rules))
        except ValueError as error:
            return web.json_response({"message": str(error)}, status=400)
        return await self._show_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self._show_faults(request)

    async def _show_requests(self, _request: web.Request) -> web.Response:
        traffic = self._traffic
        return web.json_response(
            {
                "requests": traffic.requests,
                "statuses": {str(status): n for status, n in traffic.statuses.items()},
                "peak_in_flight": traffic.peak_in_flight,
                "log": [asdict(record) for record in traffic.log],
            }
        )

    async def _clear_requests(self, request: web.Request) -> web.Response:
        self._traffic.clear()
        return await self._show_requests(request)

    async def _patch_image(self, request: web.Request) -> web.Response:
        image_id = request.match_info["id"]
        try:
            fields = json.loads(await request.text())
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            return web.json_response({"message": "send a JSON object"}, status=400)
        if self._catalog.image(image_id) is None:
            return web.json_response({"message": f"no image {image_id!r}"}, status=404)
        self._catalog.patches[image_id] = fields
        return web.json_response(fields)
