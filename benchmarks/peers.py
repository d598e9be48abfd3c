"""The tools that people copy such files with now, and how each is asked for the same images.

All but the vendor's client get the signed URLs for nothing and write the bytes alone: they make no
metadata query, no hash, no sidecar and no atomic rename.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server import Served
from benchmarks.vendor_script import AT_ONCE


@dataclass(frozen=True)
class Peer:
    """A tool: what it is called, how its version is asked for, and its command for a job."""

    name: str
    version: Sequence[str]
    command: Callable[[Served, Path], Sequence[str | Path]]

    def is_there(self) -> bool:
        """Tell whether it is installed."""
        return shutil.which(self.version[0]) is not None

    def says(self) -> str:
        """Return the first line of what it says of its version."""
        done = subprocess.run(self.version, capture_output=True, text=True, check=True)
        return done.stdout.partition("\n")[0].strip()


def _bulkfetch(served: Served, out: Path) -> Sequence[str | Path]:
    return bulkfetch(served, out, "--no-fsync")


def bulkfetch(served: Served, out: Path | str, *options: str) -> Sequence[str | Path]:
    """The command for the whole job; a static token and the API's URL come from the environment."""
    return [
        sys.executable, "-m", "bulkfetch", "download", served.manifest, "--out", out,
        "--progress=none", f"--query-concurrency={AT_ONCE}", f"--download-concurrency={AT_ONCE}",
        *options,
    ]  # fmt: skip


def _vendor(served: Served, out: Path) -> Sequence[str | Path]:
    return [sys.executable, "-m", "benchmarks.vendor_script", served.manifest, out, served.url]


def _aria2c(served: Served, out: Path) -> Sequence[str | Path]:
    return [
        "aria2c", "--quiet", f"--input-file={served.urls}", f"--dir={out}", "--split=1",
        f"--max-concurrent-downloads={AT_ONCE}", "--file-allocation=none", "--no-conf",
    ]  # fmt: skip


def _rclone(served: Served, out: Path) -> Sequence[str | Path]:
    return [
        "rclone", "copy", ":http:", out, "--quiet", f"--http-url={served.url}", "--http-no-head",
        f"--files-from-raw={served.objects}", "--no-traverse", "--no-check-dest",
        f"--transfers={AT_ONCE}", f"--checkers={AT_ONCE}", "--config=", "--retries=1",
    ]  # fmt: skip


def _curl(served: Served, out: Path) -> Sequence[str | Path]:
    config = served.urls.with_suffix(".curl")
    if not config.exists():
        lines = served.urls.read_text(encoding="utf-8").splitlines()
        config.write_text("".join(f'url = "{line}"\n' for line in lines), encoding="utf-8")
    return [
        "curl", "--silent", "--show-error", "--fail", "--disable", "--parallel",
        "--parallel-max", str(AT_ONCE), "--remote-name-all", "--create-dirs", "--output-dir", out,
        "--config", config,
    ]  # fmt: skip


OURS = Peer(
    "bulkfetch, the whole job",
    [sys.executable, "-m", "bulkfetch", "--version"],
    _bulkfetch,
)
PEERS = (
    Peer(
        "the vendor's client and httpx, the whole job",
        [sys.executable, "-c", "import importlib.metadata as m; print(m.version('candidhealth'))"],
        _vendor,
    ),
    Peer("aria2c, bytes only", ["aria2c", "--version"], _aria2c),
    Peer("rclone, bytes only", ["rclone", "--version"], _rclone),
    Peer("curl -Z, bytes only", ["curl", "--version"], _curl),
)
