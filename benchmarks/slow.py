"""The same API and storage as `server` has, but each answer takes its time, as over a long line.

python -m benchmarks.slow ROOT PORT API_LATENCY_S STORAGE_LATENCY_S
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web


def application(root: Path, api_s: float, storage_s: float) -> web.Application:
    """Serve what `server` made below `root`."""

    async def token(_: web.Request) -> web.Response:
        return web.json_response({"access_token": "benchmark", "expires_in": 18_000})

    async def images(request: web.Request) -> web.Response:
        await asyncio.sleep(api_s)
        path = root / "www" / "api" / request.query["patient_id"]
        if not path.exists():
            path = path.with_name("none")
        return web.Response(body=path.read_bytes(), content_type="application/json")

    async def stored(request: web.Request) -> web.Response:
        await asyncio.sleep(storage_s)
        return web.Response(body=(root / "www" / "o" / request.match_info["name"]).read_bytes())

    app = web.Application()
    app.router.add_post("/api/auth/v2/token", token)
    app.router.add_get("/images/v1", images)
    app.router.add_get("/o/{name}", stored)
    return app


if __name__ == "__main__":
    web.run_app(
        application(Path(sys.argv[1]), float(sys.argv[3]), float(sys.argv[4])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        access_log=None,
        print=None,
    )
