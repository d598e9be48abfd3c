from __future__ import annotations

import asyncio
import socket

from yarl import URL

from bulkfetch.simulator import Simulator, SimulatorConfig


async def test_a_connection_that_was_made_before_it_stops_is_ended_too() -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    simulator = Simulator(SimulatorConfig(patients=1))
    await simulator.start()
    url = URL(simulator.storage_url)
    with socket.create_connection((url.host or "", url.port or 0)) as client:
        client.setblocking(False)
        # The loop's next turn accepts it, after what is called here.
        loop.call_soon(stop.set)
        await stop.wait()
        await simulator.stop()
        assert await asyncio.wait_for(loop.sock_recv(client, 1), 10) == b""
