"""What the tests share: a simulator that serves, and the real command."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from bulkfetch.simulator import Simulator, SimulatorConfig
from tests.command import Command
from tests.stores import Bucket, google_bucket, s3_bucket, serving_s3

# No example is too slow, since the machine may be. CI tries the same examples each time, so that a
# change is judged by itself; everywhere else new ones are looked for.
settings.register_profile("search", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "search")

_OURS_OR_A_STORES = ("BULKFETCH_", "AWS_", "AZURE_", "GOOGLE_")

# One process runs all tests of a module that shares what takes long to make, or is one of a kind.
_TOGETHER = tuple(
    f"tests/test_{name}.py" for name in ("bag", "chain", "faults", "ray", "report_page", "site")
)


def _dealt_out_as(nodeid: str) -> str:
    module = nodeid.partition("::")[0]
    return module if module in _TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """Deal the tests out one at a time, whatever `--dist` is, but for modules that stay together.

    The groups of pytest-xdist 3.8 (`xdist_group`) are ignored by pytest 9.2.
    """
    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = _dealt_out_as
    return scheduling


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_OURS_OR_A_STORES) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # No test trusts the system's authorities, which take each command 50 ms of CPU to load.
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)


@contextmanager
def serving(config: SimulatorConfig, clock: Callable[[], float] = time.time) -> Iterator[Simulator]:
    """Serve a simulator from a thread of its own, so that blocking tests can talk to it."""
    simulator = Simulator(config, clock=clock)
    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with simulator:
            started.set()
            await stop.wait()

    # `asyncio.run` ends what is still being answered, too.
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield simulator
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


Serve = Callable[..., Simulator]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start simulators, each by the fields of its config, until the test ends."""
    with ExitStack() as stack:

        def start(**fields: Any) -> Simulator:
            config = SimulatorConfig(**{"patients": 12, "record_requests": True, **fields})
            return stack.enter_context(serving(config))

        yield start


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an S3 that all tests of a process share, each with buckets of its own."""
    with serving_s3() as url:
        yield url


@pytest.fixture
def bucket(s3: str) -> Iterator[Bucket]:
    """An empty bucket of S3, with a proxy before it that fails as told."""
    with s3_bucket(s3) as made:
        yield made


@pytest.fixture(name="google_bucket")
def _google_bucket(s3: str) -> Iterator[Bucket]:
    """An empty bucket of Google Cloud Storage, with a proxy before it that fails as told."""
    with google_bucket(s3) as made:
        yield made


@pytest.fixture
def authority(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 and api.invalid, in `cert.pem`, that vouches for itself.

    Its key lies beside it. It is good for 90 days, or for as many as the test says.
    """
    days = getattr(request, "param", 90)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(days),
         "-subj", "/CN=test authority", "-addext", "subjectAltName=IP:127.0.0.1,DNS:api.invalid",
         "-keyout", "key.pem", "-out", "cert.pem"],
        check=True, cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    return tmp_path / "cert.pem"


@pytest.fixture
def wrapped(serve: Serve, authority: Path) -> Iterator[tuple[Simulator, str]]:
    """A simulator, and a URL of its API with TLS around it."""
    simulator = serve(patients=4)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.with_name("key.pem"))
    port = int(simulator.api_url.rpartition(":")[2])
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(2**16):
                writer.write(data)
        finally:
            writer.close()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            pump(reader, there_writer), pump(there_reader, writer), return_exceptions=True
        )

    server = loop.run_until_complete(asyncio.start_server(serve_one, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield simulator, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def stop() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The summary that `--json` printed: the last line."""
        answer = json.loads(self.out.splitlines()[-1])
        assert isinstance(answer, dict)
        return answer


def credentials(simulator: Simulator) -> dict[str, str]:
    """The environment that points the command at a simulator."""
    return {
        "BULKFETCH_API_URL": simulator.api_url,
        "BULKFETCH_CLIENT_ID": simulator.config.client_id,
        "BULKFETCH_CLIENT_SECRET": simulator.config.client_secret,
    }


def start_bulkfetch(
    arguments: Sequence[str | Path],
    environment: Mapping[str, str],
    cwd: Path | None = None,
    within: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start the real command as a process, by way of another command if one is given."""
    whole = {**os.environ, **environment}
    if not within and not any(name.startswith("PYTHON") for name in environment):
        return Command([*map(str, arguments)], whole, cwd)
    return subprocess.Popen(
        [*within, sys.executable, "-W", "error", "-m", "bulkfetch", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=whole,
        cwd=cwd,
    )


def bulkfetch(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    cwd: Path | None = None,
    within: Sequence[str] = (),
) -> Result:
    """Run the real command as a process, and return what it did."""
    with start_bulkfetch(arguments, environment or {}, cwd, within) as process:
        out, err = process.communicate(stdin, timeout=120)
    return Result(process.returncode, out.decode(), err.decode())


def download(
    simulator: Simulator,
    manifest: str | Path,
    out: str | Path,
    *options: str | Path,
    within: Sequence[str] = (),
) -> Result:
    """Run the main job against a simulator."""
    return bulkfetch(
        "download",
        manifest,
        "--out",
        out,
        "--json",
        "--progress=none",
        *options,
        environment=credentials(simulator),
        within=within,
    )


def with_mounts_of_its_own(script: str) -> list[str]:
    """What to put before a command so that `script` may mount file systems for it alone.

    The script ends by running `"$@"`. Skips the test in a container that allows no mount.
    """
    for rights in _rights_to_mount():
        return ["unshare", *rights, "--mount", "sh", "-c", script, "sh"]
    pytest.skip("this machine allows no mount, not even one that nobody else sees")


@cache
def _rights_to_mount() -> list[list[str]]:
    attempts: list[list[str]] = [[], ["--map-root-user"]]
    trial = ["--mount", "mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    return [
        rights
        for rights in attempts
        if subprocess.run(
            ["unshare", *rights, *trial], capture_output=True, check=False
        ).returncode == 0
    ]  # fmt: skip


def write_manifest(path: Path, patient_ids: Sequence[str]) -> Path:
    """Write a CSV manifest."""
    path.write_text("\n".join(["patient_id", *patient_ids]) + "\n", encoding="utf-8")
    return path


def sidecars(archive: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Every image's state in an archive, by ID and version: its highest sidecar revision."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(archive.glob("[!.]*/*.json"), key=_revision):
        sidecar = json.loads(path.read_bytes())
        sidecar["_path"] = path
        found[sidecar["image_id"], sidecar["version"]] = sidecar
    return found


def _revision(path: Path) -> int:
    last = path.stem.rpartition(".")[2]
    return int(last[1:]) if last.startswith("r") and last[1:].isdigit() else 1
