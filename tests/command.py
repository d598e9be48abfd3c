"""The command in a process of its own, without the second of CPU that its modules take to load.

A process that has loaded them is forked for each command. What is forked has its own descriptors,
directory, environment and signals, and ends as the interpreter ends, but for the tearing down.
`python -m bulkfetch` itself is what the tests start that look at how it is begun. What pages say to
type, and other programs start, finds the command on the path as a program that has it done by such
a process, too.
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
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).parent.parent
# More than an environment and the arguments of a test.
_LONGEST = 2**20
# Signals go on to who does it; who is killed takes that along (`_wait`).
_PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys
there = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, {longest})
there.connect({address!r})
told, telling = os.pipe()
os.umask(umask := os.umask(0))
asked = json.dumps((sys.argv[1:], dict(os.environ), os.getcwd(), umask)).encode()
socket.send_fds(there, [asked], (0, 1, 2, telling))
os.close(telling)
pid = int.from_bytes(os.read(told, 4), "big")
if not pid:
    sys.exit("the process that has loaded the modules is dead")
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: os.kill(pid, number))
ended = os.read(told, 4)
if not ended:
    sys.exit("the process that waits for it is dead")
status = os.waitstatus_to_exitcode(int.from_bytes(ended, "big"))
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def put_on_path(directory: Path) -> Path:
    """Make a directory and put the command there as `bulkfetch`, for shells; return its path."""
    directory.mkdir()
    program = directory / "bulkfetch"
    _, address = _loaded()
    text = _PROGRAM.format(python=sys.executable, address=address, longest=_LONGEST)
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program


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
        os.umask(umask := os.umask(0))
        message = json.dumps((arguments, dict(environment), os.fspath(cwd or Path.cwd()), umask))
        requests, _ = _loaded()
        socket.send_fds(requests, [message.encode()], theirs)
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
def _loaded() -> tuple[socket.socket, str]:
    """Start the process that has loaded the modules: where this one asks it, and others do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
    directory = tempfile.TemporaryDirectory()
    address = f"{directory.name}/command"
    with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        given = [theirs.fileno(), listening.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.command", *map(str, given)],
            cwd=_ROOT, pass_fds=given, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait()
        directory.cleanup()

    atexit.register(end)
    return ours, address


def _next(requests: socket.socket, listening: socket.socket) -> list[str]:
    """Wait for what is asked; in the process that is forked to do it, return its arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([requests, listening], [], [])
        asking = requests if requests in ready else listening.accept()[0]
        message, descriptors, *_ = socket.recv_fds(asking, _LONGEST, 4)
        if asking is requests and not message:
            os._exit(0)
        program = None if asking is requests else asking
        # A program that was killed has asked nothing.
        if message and os.fork() == 0:
            requests.close()
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            *streams, telling = descriptors
            if (pid := os.fork()) == 0:
                os.close(telling)
                if program:
                    program.close()
                return _become(streams, *json.loads(message))
            _wait(pid, streams, telling, program)
        for descriptor in descriptors:
            os.close(descriptor)
        if program:
            program.close()


def _become(
    streams: list[int], arguments: list[str], environment: dict[str, str], cwd: str, umask: int
) -> list[str]:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    os.umask(umask)
    return arguments


def _done(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> NoReturn:
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    # All of the interpreter's end but its last part: to tear down what it has loaded, and shares
    # with the process that did, takes more than a short command does.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(pid: int, streams: list[int], telling: int, program: socket.socket | None) -> NoReturn:
    for stream in streams:
        os.close(stream)
    os.write(telling, pid.to_bytes(4, "big"))
    if program:
        child = os.pidfd_open(pid)
        if child not in select.select([child, program.fileno()], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):
        os.write(telling, status.to_bytes(4, "big"))
    os._exit(0)


if __name__ == "__main__":
    from bulkfetch.cli import COMMANDS, main

    for name in COMMANDS:
        importlib.import_module(f"bulkfetch.cli.{name}")
    gc.freeze()
    _done(main, _next(*(socket.socket(fileno=int(given)) for given in sys.argv[1:])))
