from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from bulkfetch.simulator import Simulator, SimulatorConfig

from .client import Caller, Serve


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_750_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts simulators, on free ports, that last as long as the test."""
    async with AsyncExitStack() as stack:

        async def start(*, clock: Clock | None = None, **options: Any) -> Caller:
            config = SimulatorConfig(**({"patients": 12} | options))
            simulator = Simulator(config, clock=clock) if clock else Simulator(config)
            await stack.enter_async_context(simulator)
            # Fresh connections, so that a broken one does not show up in the next request.
            connector = aiohttp.TCPConnector(force_close=True)
            session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
            await stack.enter_async_context(session)
            return Caller(simulator, session)

        yield start
