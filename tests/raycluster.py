"""A Ray cluster of two nodes on this machine, each of which can be killed by itself."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# What a node takes of memory for objects is of no use here.
_ARE_TWO = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)
sys.exit(sum(node["Alive"] for node in ray.nodes()) < 2)
"""
_NODE = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block")


class RayCluster:
    """A head node and others, as processes.

    Attributes:
        address: what --ray-address takes.
        credentials: the environment of what is to join it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"{_own_address()}:{_free_port()}"
        # A token of its own, whatever Ray has left in the home directory.
        self.credentials = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start both nodes, and wait until they are there."""
        port = self.address.rpartition(":")[2]
        self._start(
            "--head", f"--port={port}", f"--temp-dir={self.directory}", "--include-dashboard=false",
        )  # fmt: skip
        self._wait_for("import ray, sys; ray.init(sys.argv[1], log_to_driver=False)")
        self.add_node()

    def add_node(self) -> None:
        """Start another node of one CPU, and wait until the cluster has it."""
        self._start(f"--address={self.address}")
        self._wait_for(_ARE_TWO)

    @property
    def sessions(self) -> set[int]:
        """The sessions of its processes: each node's are in one."""
        return {node.pid for node in self._nodes}

    def kill_node(self) -> None:
        """End the last node and all that runs on it, as a machine does that loses its power."""
        node = self._nodes.pop()
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait(60)

    def close(self) -> None:
        """End all nodes."""
        while self._nodes:
            self.kill_node()

    def _start(self, *options: str) -> None:
        # A session of its own, so that all of a node can be ended together.
        with (self.directory / f"node-{len(self._nodes)}.log").open("wb") as log:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *_NODE]
            self._nodes.append(subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(),
                start_new_session=True,
            ))  # fmt: skip

    def _environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            **self.credentials,
            "RAY_USAGE_STATS_ENABLED": "0",
            # A dead node is noticed in seconds.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
        }

    def _wait_for(self, condition: str) -> None:
        deadline = time.monotonic() + 120
        while self._run("-c", condition, self.address):
            assert time.monotonic() < deadline, "the cluster does not come up"

    def _run(self, *arguments: str) -> int:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, env=self._environment(), check=False,
            timeout=120,
        )  # fmt: skip
        return done.returncode


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Have a cluster of two nodes until the context ends."""
    # A socket's path is a hundred characters at most, and Ray adds most of them.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as made:
        cluster = RayCluster(Path(made))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


def _own_address() -> str:
    """Return the address that Ray gives a node, since it refuses to use loopback for one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"  # as Ray does where there is no network
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
