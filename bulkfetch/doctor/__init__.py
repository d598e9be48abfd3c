"""Whether a run would get from here to the images, and what to do where it would not.

Nothing is fetched but one byte, and nothing is left on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bulkfetch.doctor.bucket import Bucket
from bulkfetch.doctor.checks import Check, Checks, SkippedError, State
from bulkfetch.doctor.machine import Directory, check_metrics, check_open_files
from bulkfetch.doctor.network import Network
from bulkfetch.doctor.setup import BY_DEFAULT, Setting, Setup, set_up
from bulkfetch.settings import Address, Settings
from bulkfetch.stores import file_path, is_url

__all__ = ["BY_DEFAULT", "Check", "Setting", "Setup", "State", "Sums", "examine", "set_up"]

# A check that takes longer than this has told enough.
LONGEST_CHECK_S = 30.0


class Sums(NamedTuple):
    """How many checks ended in which state."""

    ok: int
    problem: int
    skipped: int


async def examine(
    setup: Setup[Settings],
    out: str | None,
    *,
    patient: str | None = None,
    metrics_file: Path | None = None,
    metrics_address: Address | None = None,
    told: Callable[[Check], None] = lambda _: None,
    clock: Callable[[], float] = time.time,
) -> Sums:
    """Do every check, one after the other, and return the sums; `told` is told of each at once.

    Each takes `timeout` and at most `LONGEST_CHECK_S`; whatever one comes upon, the others that do
    not need it go on. Nothing is raised.

    Args:
        out: the archive, or its URL; None to leave the destination out.
        patient: whose images to ask for; by default those of one whom the API lists.
        metrics_file: where a run's numbers are to go; None for nowhere.
        metrics_address: where they are to be served; None for nowhere.
        clock: gives seconds since 1970.
    """
    longest_s = min(setup.settings.timeout, LONGEST_CHECK_S)
    settings = setup.settings.model_copy(update={"timeout": longest_s})
    checks = Checks(told, longest_s)
    credentials = await setup.check(checks)
    network = Network(settings, credentials, patient, clock)
    await network.check(checks, tells_where=setup.tells_where)
    if out is None:
        await checks("destination", _no_destination)
    else:
        kind = Bucket if is_url(file_path(out)) else Directory
        await kind(file_path(out), settings).check(
            checks, tells_where=setup.tells_where, organization_id=network.organization_id
        )
    await check_open_files(checks, settings)
    await check_metrics(checks, metrics_file, metrics_address)
    return Sums(*(checks.states[state] for state in State))


async def _no_destination() -> str:
    raise SkippedError("none is named: give --out")
