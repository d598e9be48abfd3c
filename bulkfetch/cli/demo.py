"""`bulkfetch demo`: the main job against the embedded simulator, and a look at what it made."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import SecretStr

from bulkfetch import logs
from bulkfetch.cli import running
from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import say
from bulkfetch.cli.simulate import write_manifest
from bulkfetch.errors import DestinationError
from bulkfetch.manifest import Manifest
from bulkfetch.models import Summary
from bulkfetch.paths import PRIVATE
from bulkfetch.pipeline import Run
from bulkfetch.progress import ProgressStyle, progress_for
from bulkfetch.settings import ENV_PREFIX, Settings
from bulkfetch.simulator import Simulator, SimulatorConfig
from bulkfetch.words import counted

_PATIENTS_SHOWN = 3


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "demo",
        "Start the simulator, run the main job against it, and show what lands on disk.\n"
        "Run it twice: the second time all is unchanged.",
        ["bulkfetch demo", "bulkfetch demo --patients 1000 --out /tmp/demo"],
    )
    parser.add_argument(
        "--out", "-o", type=Path, default=Path("bulkfetch-demo"), metavar="DIR",
        help="where manifest and archive go [bulkfetch-demo]",
    )  # fmt: skip
    parser.add_argument(
        "--patients", type=int, default=200, metavar="N", help="how many patients [200]"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Make an archive of synthetic cards, and show it."""
    parser = command_line()
    given = parser.parse_args(argv)
    if given.patients < 1:
        parser.error("--patients: there must be at least one")
    # A demo is the same for everybody, whatever is set for the real account.
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        del os.environ[name]
    logs.configure(logs.LogLevel.error, logs.LogFormat.text)
    simulator = Simulator(SimulatorConfig(patients=given.patients))
    patients, archive = given.out / "patients.csv", given.out / "archive"
    try:
        given.out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DestinationError(f"{given.out} cannot be made: {error.strerror}") from error
    write_manifest(simulator, patients)
    say(f"$ {running.program()} download {patients} --out {archive}\n")
    with Manifest(patients) as manifest:
        summary = asyncio.run(_download(simulator, manifest, archive))
    if isinstance(summary, int):
        return summary
    running.show(summary, str(archive))
    say(f"\n{archive}/")
    for line in _tree(archive):
        say(f"  {line}")
    say(_one_sidecar(archive))
    again = shlex.join(["demo", *argv])
    say(_NEXT.format(program=running.program(), again=again, archive=shlex.quote(str(archive))))
    return summary.exit_code


async def _download(simulator: Simulator, manifest: Manifest, archive: Path) -> Summary | int:
    async with simulator:
        settings = Settings(
            out=str(archive),
            api_url=simulator.api_url,
            client_id=simulator.config.client_id,
            client_secret=SecretStr(simulator.config.client_secret),
        )
        job = Run(manifest, manifest.check(), settings, progress=progress_for(ProgressStyle.auto))
        return await running.do(job)


def _tree(archive: Path) -> Iterator[str]:
    directories = sorted(path for path in archive.iterdir() if path.name != PRIVATE)
    for directory in directories[:_PATIENTS_SHOWN]:
        yield f"{directory.name}/"
        for file in sorted(directory.iterdir()):
            yield f"    {file.name}  {counted(file.stat().st_size, 'byte')}"
    if more := len(directories) - _PATIENTS_SHOWN:
        yield f"... and {counted(more, 'more patient')}"
    yield f"{PRIVATE}/"
    for file in sorted((archive / PRIVATE).rglob("*")):
        if file.is_file():
            yield f"    {file.relative_to(archive / PRIVATE)}"


def _one_sidecar(archive: Path) -> str:
    sidecars = itertools.chain.from_iterable(
        sorted(directory.glob("*.json"))
        for directory in sorted(archive.iterdir())
        if directory.name != PRIVATE
    )
    path = next(path for path in sidecars if json.loads(path.read_bytes())["file"])
    return f"\n{path}\n{path.read_text(encoding='utf-8')}"


_NEXT = """\
Next:
  {program} {again}     # again: all is unchanged, nothing is fetched twice
  {program} report {archive}  # a page to look at
  {program} simulate --help      # an API to practise on, with faults on demand
  export BULKFETCH_CLIENT_ID=... BULKFETCH_CLIENT_SECRET_FILE=...
  {program} download MANIFEST --out archive --dry-run    # your own account
"""
