"""One run at a time on an archive, or the shards of one run side by side.

A lock dies with its processes; beside it a file names the holder. One that still names a process
whose lock is free tells that this run did not end in order, and since when it ran.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bulkfetch.archive import files
from bulkfetch.errors import DestinationError
from bulkfetch.models import Shard

WHOLE = ""
# A shard holds the whole archive's lock only while it looks at the others' locks.
_GATE_S = 2.0
# The other processes of a run whose first was killed end at once, but for what the disk is at.
_LAST_WRITE_S = 10.0
_LONGEST_HOLDER = 2**16
_OWNER = re.compile(r"([0-9]+)-of-([0-9]+)")


class _Holder(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    pid: int = Field(gt=0, lt=2**31)
    host: str

    def has_died(self) -> bool:
        """Tell whether the first process of the run is known to be gone."""
        if self.host != socket.gethostname():
            return False
        return is_gone(self.pid)


def is_gone(pid: int) -> bool:
    """Tell whether no process of this machine has a number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


class Hold:
    """What a run may do in an archive that it holds.

    Attributes:
        owner: who writes here, for names of files: "" for a run on the whole, or `2-of-4`.
        locks: descriptors that hold the locks; a process that inherits them holds them too.
        dead: the owners of runs that did not end in order, and whose leavings are this run's to
            clear away: when each began, as Unix time of the archive's file system.
    """

    def __init__(
        self, private: Path, owner: str, locks: Sequence[int], dead: Mapping[str, float]
    ) -> None:
        self._private = private
        self.owner = owner
        self.locks = locks
        self.dead = dead

    def not_cleared(self) -> None:
        """Note that this run leaves something to clear away."""
        self.dead = {self.owner: 0.0}

    def cleared(self) -> None:
        """Note that nothing is left of the dead."""
        for owner in self.dead:
            if owner != self.owner:
                _holder(self._private, owner).unlink(missing_ok=True)
        os.utime(_holder(self._private, self.owner))
        self.dead = {}


def at_work(private: Path) -> dict[str, Shard | None]:
    """Return the runs at work in an archive, as far as can be seen without its locks.

    They are told by their IDs, each with the shard that it has.
    """
    return {
        who.run_id: _shard_of(owner)
        for owner in _owners(private, "holder")
        if (who := _read_holder(private, owner)) is not None and not who.has_died()
    }


def owner_of(shard: Shard | None) -> str:
    """Name what is held: `2-of-4` for a shard's share, "" for all."""
    return f"{shard.number}-of-{shard.shares}" if shard else WHOLE


@contextmanager
def hold(private: Path, run_id: str, shard: Shard | None) -> Iterator[Hold]:
    """Hold an archive, or one shard's share of it, until the context ends.

    Raises:
        DestinationError: another run holds it, or a shard of another number of shards does.
    """
    owner = owner_of(shard)
    with ExitStack() as held:
        with files.named(str(private.parent)), ExitStack() as gate:
            # A run on the whole keeps what is only a gate to a shard.
            locks = [
                (gate if shard else held).enter_context(
                    _locked(private, WHOLE, wait_s=_GATE_S if shard else 0.0)
                )
            ]
            if shard:
                locks = [held.enter_context(_locked(private, owner))]
            dead: dict[str, float] = {}
            for other in sorted({*_owners(private, "lock"), *_owners(private, "holder"), owner}):
                if other not in (WHOLE, owner):
                    if shard and _OWNER.sub(r"\2", other) == str(shard.shares):
                        continue
                    with _locked(private, other):
                        # No one can be waiting for it: that takes the lock of the whole first.
                        _name(private, "lock", other, "").unlink(missing_ok=True)
                with suppress(FileNotFoundError):
                    dead[other] = _holder(private, other).stat().st_mtime
            # A run that dies before all is cleared away leaves the same to the next.
            _write_holder(private, owner, run_id, dead.get(owner))
        holding = Hold(private, owner, locks, dead)
        try:
            yield holding
        finally:
            # Where the dead's leavings are still there, the next run is to know.
            if not holding.dead:
                with suppress(OSError):
                    _holder(private, owner).unlink()


@contextmanager
def hold_still(private: Path) -> Iterator[None]:
    """Let no run begin in an archive until the context ends; others may read it meanwhile, too.

    It may be mounted read-only: then no run can begin by that way.

    Raises:
        DestinationError: a run is at work in it.
    """
    with ExitStack() as held:
        with files.named(str(private.parent)):
            # The whole's first: it is the gate that any shard passes, too.
            for owner in sorted({WHOLE, *_owners(private, "lock")}):
                try:
                    held.enter_context(_locked(private, owner, shared=True))
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EROFS):
                        raise
        yield


@contextmanager
def _locked(
    private: Path, owner: str, *, wait_s: float = 0.0, shared: bool = False
) -> Iterator[int]:
    path = _name(private, "lock", owner, "")
    access = os.O_RDONLY if shared else os.O_RDWR
    descriptor = os.open(path, access | os.O_CREAT | os.O_NOFOLLOW, files.FILE_MODE)
    try:
        if not files.lock(descriptor, time.monotonic() + wait_s, shared=shared):
            who = _read_holder(private, owner)
            is_ending = who is not None and who.has_died()
            deadline = time.monotonic() + _LAST_WRITE_S
            if not is_ending or not files.lock(descriptor, deadline, shared=shared):
                named = f" (run {who.run_id}, process {who.pid} on {who.host})" if who else ""
                raise DestinationError(
                    f"{_held(private, owner)} is held by another run{named}: {_advice(owner)}"
                )
        yield descriptor
    finally:
        # Which lets go of it, unless another process of the run has it still.
        os.close(descriptor)


def _held(private: Path, owner: str) -> str:
    shard = _shard_of(owner)
    return f"shard {shard} of {private.parent}" if shard else str(private.parent)


def _advice(owner: str) -> str:
    shard = _shard_of(owner)
    wait = "wait for it to end"
    return f"{wait}; only other shards of {shard.shares} may run meanwhile" if shard else wait


def _shard_of(owner: str) -> Shard | None:
    found = _OWNER.fullmatch(owner)
    return Shard(*map(int, found.groups())) if found else None


def _owners(private: Path, what: str) -> Iterator[str]:
    for path in private.glob(f"{what}*"):
        owner = path.name.removesuffix(".json").removeprefix(what).removeprefix("-")
        if owner == WHOLE or _OWNER.fullmatch(owner):
            yield owner


def _holder(private: Path, owner: str) -> Path:
    return _name(private, "holder", owner, ".json")


def _name(private: Path, what: str, owner: str, ending: str) -> Path:
    return private / f"{what}{'-' if owner else ''}{owner}{ending}"


def _read_holder(private: Path, owner: str) -> _Holder | None:
    try:
        with files.descriptor(private) as directory:
            return _Holder.model_validate_json(
                files.read(_holder(private, owner).name, directory, _LONGEST_HOLDER)
            )
    except (OSError, ValidationError):
        return None


def _write_holder(private: Path, owner: str, run_id: str, began: float | None) -> None:
    path = _holder(private, owner)
    aside = path.with_suffix(".new")
    who = _Holder(run_id=run_id, pid=os.getpid(), host=socket.gethostname())
    aside.unlink(missing_ok=True)
    aside.touch(mode=files.FILE_MODE)
    aside.write_text(who.model_dump_json(), encoding="utf-8")
    if began is not None:
        os.utime(aside, (began, began))
    aside.rename(path)
