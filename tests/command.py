"""The command in a process of its own, without the second of CPU that its modules take to load.

A process that has loaded them is forked for each command. What is forked has its own descriptors,
directory, environment and signals, and ends as the interpreter ends. `python -m bulkfetch` itself
is what the tests start that look at how it is begun, or begin it by way of another program.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).parent.parent
# More than an environment and the arguments of a test.
_LONGEST = 2**20


class Command(subprocess.Popen[bytes]):
    """As `subprocess.Popen` of the command, all of whose streams are pipes.

    The process is no child of this one: another one waits for it, and tells here how it ended.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None
    ) -> None:
        pipe = subprocess.PIPE
        super().__init__(arguments, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=environment)

    def _execute_child(self, arguments: Sequence[str], *others: Any) -> None:
        cwd, environment = others[4:6]
        stdin, _, _, stdout, _, stderr = others[9:15]
        self._told, telling = os.pipe()
        theirs = (stdin, stdout, stderr, telling)
        message = json.dumps((arguments, dict(environment), os.fspath(cwd or Path.cwd())))
        socket.send_fds(_loaded(), [message.encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        self.pid = int.from_bytes(os.read(self._told, 4), "big")
        assert self.pid, "the process that has loaded the modules is dead"
        self._child_created = True

    def _internal_poll(self, *_: object, **__: object) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if flags & os.WNOHANG and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        status = int.from_bytes(os.read(self._told, 4), "big")
        os.close(self._told)
        return self.pid, status


@cache
def _loaded() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.command", str(theirs.fileno())],
            cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _next(requests: socket.socket) -> list[str]:
    """Wait for what is asked; in the process that is forked to do it, return its arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, _LONGEST, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            *streams, telling = descriptors
            if (pid := os.fork()) == 0:
                os.close(telling)
                return _become(streams, *json.loads(message))
            _wait(pid, streams, telling)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(
    streams: list[int], arguments: list[str], environment: dict[str, str], cwd: str
) -> list[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    return arguments


def _wait(pid: int, streams: list[int], telling: int) -> NoReturn:
    for stream in streams:
        os.close(stream)
    os.write(telling, pid.to_bytes(4, "big"))
    _, status = os.waitpid(pid, 0)
    os.write(telling, status.to_bytes(4, "big"))
    os._exit(0)


if __name__ == "__main__":
    from bulkfetch.cli import COMMANDS, main

    for name in COMMANDS:
        importlib.import_module(f"bulkfetch.cli.{name}")
    gc.freeze()
    sys.exit(main(_next(socket.socket(fileno=int(sys.argv[1])))))
