"""How a check is done and told: within a bound of time, and whatever it comes upon."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from enum import StrEnum
from http import HTTPStatus
from typing import NamedTuple, TypeVar

from bulkfetch.errors import (
    ArchiveMismatchError,
    BadResponseError,
    BulkfetchError,
    ConfigurationError,
    ConnectionFailedError,
    CredentialsError,
    HostDeniedError,
    SignedURLError,
    StatusError,
    TimedOutError,
    unexpected,
)

T = TypeVar("T")


class State(StrEnum):
    """How a check ended; `skipped` says nothing for or against."""

    ok = "ok"
    problem = "problem"
    skipped = "skipped"


class Check(NamedTuple):
    """What one check found; `advice` says what to do about a problem, and is "" otherwise."""

    name: str
    state: State
    detail: str
    advice: str = ""


class ProblemError(Exception):
    """Something is wrong, and `advice` says what to do about it."""

    def __init__(self, detail: str, advice: str) -> None:
        super().__init__(detail)
        self.advice = advice


class SkippedError(Exception):
    """There is nothing to be checked here, and this says why."""


class Checks:
    """Does one check after the other, and tells each at once.

    Attributes:
        states: how many ended in which state.
    """

    def __init__(self, told: Callable[[Check], None], longest_s: float) -> None:
        self._told = told
        self._longest_s = longest_s
        self._failed: set[str] = set()
        self.states: Counter[State] = Counter()

    async def __call__(
        self,
        name: str,
        work: Callable[[], Awaitable[str]],
        *,
        of: str = "",
        needs: Sequence[str] = (),
    ) -> None:
        """Do a check, unless one that it needs failed, or was skipped for that reason.

        `work` returns the detail; `of` tells several checks of one name apart, and is part of the
        name that others need them by.
        """
        full_name = f"{name} {of}".strip()
        missing = next((need for need in needs if need in self._failed), None)
        if missing:
            check = Check(name, State.skipped, f"{of}: " * bool(of) + f"needs {missing} first")
        else:
            check = await self._done(name, work)
        if missing or check.state is State.problem:
            self._failed.add(full_name)
        self.states[check.state] += 1
        self._told(check)

    async def _done(self, name: str, work: Callable[[], Awaitable[str]]) -> Check:
        try:
            async with asyncio.timeout(self._longest_s):
                return Check(name, State.ok, await work())
        except SkippedError as reason:
            return Check(name, State.skipped, str(reason))
        except ProblemError as error:
            return Check(name, State.problem, str(error), error.advice)
        except BulkfetchError as error:
            return Check(name, State.problem, str(error), _advice(error))
        except TimeoutError:
            detail = f"not done after {self._longest_s:g} s, and given up"
            return Check(name, State.problem, detail, "find out what hangs: network or disk")
        except Exception as error:  # noqa: BLE001  the other checks go on, whatever it is
            return Check(name, State.problem, unexpected(error), "report it; the rest is checked")


async def aside(work: Callable[[], T]) -> T:
    """Return what a thread does; where it hangs, on a dead disk say, it is left behind."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised where it is awaited
            done.set_exception(error)

    # An executor's threads are waited for when the program ends; those of a daemon are not.
    threading.Thread(target=do, daemon=True).start()
    return await asyncio.wrap_future(done)


_ADVICE: dict[type[BulkfetchError], str] = {
    CredentialsError: "correct the credentials; they and --environment are of one account",
    HostDeniedError: "where it is a storage of yours or the vendor's, name it with --storage-host",
    SignedURLError: "see the clock above; then ask the vendor whether this machine may read there",
    StatusError: "see what answers there, perhaps a proxy: check --environment and --api-url",
    BadResponseError: "see what answers there, perhaps a proxy: check --environment and --api-url",
    ConnectionFailedError: "check the network, its firewall and proxy, --environment and --api-url",
    TimedOutError: "check the network, its firewall and proxy, --environment and --api-url",
    ArchiveMismatchError: "do as it says, or name another directory with --out",
    ConfigurationError: "see to that first: a run would fetch nothing",
    BulkfetchError: "make it usable, or name another directory with --out",
}


def _advice(error: BulkfetchError) -> str:
    if isinstance(error, StatusError):
        if error.status == HTTPStatus.FORBIDDEN:
            return "ask the vendor whether these credentials, and this machine, may read this"
        if error.retryable:
            return f"HTTP {error.status} may pass: try again in a while, or tell the vendor"
    return next(advice for kind, advice in _ADVICE.items() if isinstance(error, kind))
