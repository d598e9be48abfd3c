"""A process that sees to patients for another one: `python -m bulkfetch.pipeline.helper FD`.

`FD` is an inherited socket to the first process of the run.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

from bulkfetch.pipeline.wire import HelperStart, SocketChannel
from bulkfetch.pipeline.worker import Worker, work
from bulkfetch.retry import Budget


async def _help(end: socket.socket) -> int:
    channel = await SocketChannel.open(end)
    start = await channel.receive()
    if not isinstance(start, HelperStart):
        return 1
    budget = Budget(start.budget, start.number, start.processes)
    is_done = await work(channel, start, Worker(channel, start, budget))
    await channel.close()
    return 0 if is_done else 1


def main() -> int:
    """Help until the first process says that it is over, or is gone; return the exit status."""
    # It is for the first process to heed them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return asyncio.run(_help(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
