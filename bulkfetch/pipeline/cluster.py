"""The engine of many machines: Ray places the run's workers, and tells when they are gone.

The first process only deals out and writes down. A worker is an actor of this run's job, so that it
ends with it, however that ends; one that died is asked for anew, and waits for its place while the
others go on.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
import secrets
import sys
from asyncio.subprocess import DEVNULL
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from bulkfetch.bounds import Bounds, Lease, LentRetries, Tenant, Wish
from bulkfetch.errors import ConfigurationError, EngineError
from bulkfetch.logs import Event, about
from bulkfetch.pipeline.actors import PIECE_BYTES, VERSIONS, Actor
from bulkfetch.pipeline.crew import Member, Ties
from bulkfetch.pipeline.wire import Message, Start, Unpacker, packed
from bulkfetch.settings import Settings
from bulkfetch.transport import Transport

_ANSWERS_WITHIN_S = 20.0
_JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
_TOLD_AFTER_S = 30.0
# A worker that so often died before it had seen to any patient is not asked for again.
_VAIN_LIVES = 5
_FIRST = 1

log = logging.getLogger(__name__)


class Cluster:
    """The engine of a cluster; its workers share on leases what bounds the run."""

    first_takes_part = False
    lives = 3

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # What it asks itself, it asks one by one.
        self.share = settings.model_copy(update={"query_concurrency": 1})
        self.retries = LentRetries()
        self._workers = settings.ray_workers or 1
        self._numbers = itertools.count(_FIRST + 1)
        self._ray: Any = None
        self._bounds: Any = None
        self._at_work: set[Worker] = set()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def processes(self) -> int:
        """See `Engine.processes`."""
        return 1 + self._workers

    async def __aenter__(self) -> Self:
        """Join the cluster.

        Raises:
            ConfigurationError: Ray is not installed, or nobody answers at the address.
        """
        settings = self._settings
        address = settings.ray_address or os.environ.get("RAY_ADDRESS") or "auto"
        if address == "local":
            # A cluster of the run's own has a token of its own: else Ray leaves one in the home
            # directory, which changes what every later cluster of this user asks for. Ray reads
            # this when it is loaded.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        self._ray = _imported()
        if address != "local":
            await _knock(address)
        joining = asyncio.ensure_future(asyncio.to_thread(self._join, address))
        try:
            await asyncio.shield(joining)
        except asyncio.CancelledError:
            await asyncio.wait([joining])
            self._ray.shutdown()
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"the Ray cluster at {address} cannot be joined: {str(error).splitlines()[0]}"
            ) from error
        most = min(settings.query_concurrency, settings.download_concurrency)
        wanted = settings.ray_workers or sum(
            node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in self._ray.nodes()
        )
        self._workers = max(1, min(wanted, most))
        return self

    def _join(self, address: str) -> None:
        self._ray.init(
            address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            configure_logging=False,
        )

    async def __aexit__(self, *_: object) -> None:
        if self._keeping:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        await asyncio.to_thread(self._ray.shutdown)

    def crew(self, start: Start, transport: Transport, ties: Ties) -> Sequence[Member]:
        """See `Engine.crew`."""
        settings = start.settings
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=False
        )
        bounds = self._ray.remote(num_cpus=0, scheduling_strategy=here)(Bounds)
        self._bounds = bounds.remote(
            settings.query_concurrency, settings.download_concurrency, settings.rate_limit
        )
        tenant = Tenant(
            settings,
            self._renew,
            queries=transport.query_slots,
            pace=transport.pace,
            retries=self.retries,
        )
        self._keeping = asyncio.create_task(self._keep(tenant, ties))
        start = replace(start, writer=start.writer._replace(locks=()))
        workers = [Worker(start, ties, self) for _ in range(self._workers)]
        self._at_work.update(workers)
        return workers

    def ask_for_actor(self) -> tuple[int, Any]:
        """Ask for an actor, and return its number and handle; it has its place some time later."""
        number = next(self._numbers)
        actor = self._ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(Actor)
        return number, actor.remote(number, self._bounds)

    def kill(self, actor: Any) -> None:  # noqa: ANN401  Ray's handle
        """End an actor at once, or take the wish for it back."""
        with suppress(self.error):
            self._ray.kill(actor)

    @property
    def error(self) -> type[Exception]:
        """What Ray raises."""
        found: type[Exception] = self._ray.exceptions.RayError
        return found

    def gave_up(self, worker: Worker, ties: Ties) -> None:
        """Note that a worker is not asked for again; the last one ends the run."""
        self._at_work.discard(worker)
        if not self._at_work:
            ties.fail(
                EngineError(
                    f"each worker of the cluster died {_VAIN_LIVES} times before it had seen to "
                    f"any patient: are {VERSIONS} and memory enough on every node?"
                )
            )

    async def count_retries(self) -> None:
        """Learn how many retries the run has taken."""
        with suppress(self.error, TimeoutError):
            counting = self._bounds.count.remote()
            self.retries.count = await asyncio.wait_for(counting, _ANSWERS_WITHIN_S)

    async def _renew(self, wish: Wish) -> Lease:
        lease: Lease = await self._bounds.renew.remote(_FIRST, wish)
        return lease

    async def _keep(self, tenant: Tenant, ties: Ties) -> None:
        try:
            await tenant.keep()
        except EngineError as error:
            ties.fail(error)
        except self.error:
            ties.fail(EngineError("the actor that held the run's bounds is gone"))


class Worker(Member):
    """One worker, through as many lives as it takes."""

    def __init__(self, start: Start, ties: Ties, cluster: Cluster) -> None:
        super().__init__(start, ties)
        self._cluster = cluster
        self._actor: Any = None

    async def __call__(self) -> None:
        """See `Member.__call__`."""
        in_vain = 0
        while not self._orders and in_vain < _VAIN_LIVES:
            done = self.tally.done
            await self._live()
            in_vain = in_vain + 1 if self.tally.done == done else 0
        if self._orders:
            await self._cluster.count_retries()
        else:
            self._cluster.gave_up(self, self._ties)

    async def _live(self) -> None:
        number, actor = self._cluster.ask_for_actor()
        self._start, self._actor = replace(self._start, number=number), actor
        self._has_begun = self._is_done = False
        self._silent_s = 0
        try:
            versions = await self._placed(actor)
        except self._cluster.error:
            if not self._orders:
                log.warning(
                    "a worker of the cluster did not come up: is %s there?",
                    VERSIONS,
                    extra=about(Event.worker_not_started, versions=VERSIONS),
                )
            return
        except BaseException:
            self._kill()
            raise
        if versions != VERSIONS:
            self._ties.fail(
                ConfigurationError(
                    f"a node of the cluster has {versions}, and this machine {VERSIONS}: "
                    "install the same on all of them"
                )
            )
        channel = _Channel(actor, self._cluster.error)
        await self._hear_out(channel, ended=self._gone())

    async def _placed(self, actor: Any) -> str:  # noqa: ANN401  Ray's handle
        """Wait for an actor's place, as long as it takes, and return its versions."""
        began = asyncio.ensure_future(_answer(actor.begin.remote()))
        try:
            done, _ = await asyncio.wait([began], timeout=_TOLD_AFTER_S)
            if not done:
                log.warning(
                    "a worker waits for a free CPU of the cluster, and the run for it",
                    extra=about(Event.worker_waiting),
                )
            return await began
        finally:
            began.cancel()

    async def _gone(self) -> str:
        self._kill()
        return "its process or its node is gone"

    def _kill(self) -> None:
        self._cluster.kill(self._actor)


class _Channel:
    """The first process's end of the channel to an actor."""

    def __init__(self, actor: Any, error: type[Exception]) -> None:  # noqa: ANN401  Ray's handle
        self._actor = actor
        self._error = error
        self._unpack = Unpacker()
        self._heard: deque[Message] = deque()
        self._to_say = bytearray()

    def send(self, message: Message) -> None:
        """See `Channel.send`."""
        if not self._to_say:
            # What is said meanwhile goes together.
            asyncio.get_running_loop().call_soon(self._say)
        self._to_say += packed(message)

    def _say(self) -> None:
        for at in range(0, len(self._to_say), PIECE_BYTES):
            self._actor.tell.remote(bytes(self._to_say[at : at + PIECE_BYTES]))
        self._to_say.clear()

    async def receive(self) -> Message | None:
        """See `Channel.receive`."""
        while not self._heard:
            try:
                data = await self._actor.hear.remote()
            except self._error:
                return None
            if data is None:
                return None
            self._heard.extend(self._unpack(data))
        return self._heard.popleft()


async def _answer(reference: Any) -> str:  # noqa: ANN401  Ray's, which can only be awaited
    answer: str = await reference
    return answer


def _imported() -> Any:  # noqa: ANN401  it is there or not
    # Ray reports home, and logs what nobody awaited, unless told otherwise before it is loaded.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        ray = importlib.import_module("ray")
        worker: Any = importlib.import_module("ray._private.worker")
        importlib.import_module("ray.util.scheduling_strategies")
    except ImportError as error:
        raise ConfigurationError(
            "--engine ray needs Ray, which is not installed: pip install 'bulkfetch[ray]'"
        ) from error
    # What Ray says of this process or of a worker's end is said by this program, in its own words;
    # Ray prints the latter on standard output, and there is no public way to have it not.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    worker.print_to_stdstream = lambda *_, **__: None
    return ray


async def _knock(address: str) -> None:
    """See that a cluster answers: Ray itself asks for minutes."""
    # `ray health-check` does not show the cluster's token, as joining does.
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _JOIN, address, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
    )
    status: int | None = None
    try:
        with suppress(TimeoutError):
            status = await asyncio.wait_for(asking.wait(), _ANSWERS_WITHIN_S)
    finally:
        if asking.returncode is None:
            with suppress(ProcessLookupError):
                asking.kill()
            await asking.wait()
    if status != 0:
        raise ConfigurationError(
            f"no Ray cluster answers at {address}: name its head node with --ray-address "
            "HOST:PORT, from a machine that is in the cluster"
        )
