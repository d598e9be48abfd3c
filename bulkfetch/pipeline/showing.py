"""How a run is seen while it goes on: by people at once, by others in its archive."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bulkfetch.progress import Progress
from bulkfetch.tally import Tally

_SHOW_EVERY_S = 0.1
_TURNS_A_LOOK = 10


@asynccontextmanager
async def shown(
    progress: Progress,
    sums: Callable[[], Tally],
    let_others_see: Callable[[Tally], Awaitable[None]],
) -> AsyncIterator[None]:
    """Show a run's sums ten times a second, and to others once, until the context ends."""

    async def show() -> None:
        for turn in itertools.count():
            tally = sums()
            progress.show(tally)
            await asyncio.sleep(_SHOW_EVERY_S)
            if turn % _TURNS_A_LOOK == 0:
                await let_others_see(tally)

    showing = asyncio.create_task(show())
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.wait([showing])
        if not showing.cancelled():
            showing.result()
