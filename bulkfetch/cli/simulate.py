"""`bulkfetch simulate`: the simulated API and storage, served until stopped."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser
from bulkfetch.cli.running import program, say
from bulkfetch.errors import ConfigurationError
from bulkfetch.settings import ENV_PREFIX
from bulkfetch.simulator import KINDS, TARGETS, Simulator, SimulatorConfig, parse_fault
from bulkfetch.words import counted

_DEFAULT = SimulatorConfig()
# Fields of `SimulatorConfig`; those in seconds end in `_s`, which their options leave out.
_OPTIONS = (
    ("seed", int, "N", "which population"),
    ("patients", int, "N", "how many"),
    ("images_per_patient", int, "N", "in the mean, 0 to 8"),
    ("port", int, "PORT", "of the API; storage has the next one; 0: any two"),
    ("client_id", str, "ID", "that the token endpoint accepts"),
    ("client_secret", str, "SECRET", "that goes with it"),
    ("static_token", str, "TOKEN", "accepted besides those that are issued"),
    ("token_lifetime_s", float, "SECONDS", "of a token"),
    ("url_lifetime_s", float, "SECONDS", "of a signed URL"),
    ("api_latency_s", float, "SECONDS", "before each answer of the API"),
    ("storage_latency_s", float, "SECONDS", "before each answer of storage"),
    ("rate_limit", float, "R", "API requests a second; above it, 429"),
    ("fixed_bytes", int, "N", "pad each file to about this many bytes"),
)


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "simulate",
        "Serve the pre-encounter API, its token endpoint and the storage behind signed URLs\n"
        "on loopback, with synthetic patients and cards, until Ctrl-C or SIGTERM.\n"
        "One line of JSON on standard output says where.",
        [
            "bulkfetch simulate --port 8080 --patients 1000 --manifest patients.csv",
            "bulkfetch simulate --fault storage:503@10% --fault images:429=2x1",
        ],
    )
    for name, kind, metavar, what in _OPTIONS:
        default = getattr(_DEFAULT, name)
        parser.add_argument(
            "--" + name.removesuffix("_s").replace("_", "-"),
            dest=name,
            type=kind,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=what if default is None else f"{what} [{default}]",
        )
    parser.add_argument(
        "--fault",
        dest="faults",
        action="append",
        metavar="TARGET:KIND[=VALUE][@RATE%][xCOUNT]",
        help=f"targets: {', '.join(TARGETS)}; kinds: see below; for a share of the requests, or "
        "for the first COUNT for each resource; repeatable",
    )
    kinds = {f"{name}=VALUE" if k.needs_value else name: k.help for name, k in KINDS.items()}
    kinds["400 to 599"] = "answers with this status; a value is its Retry-After"
    listed = "".join(f"  {name:<16}{what}\n" for name, what in kinds.items())
    parser.epilog = f"{parser.epilog}\nkinds of faults:\n{listed}"
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="write a CSV manifest of all the patients"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Serve the simulator until Ctrl-C or SIGTERM."""
    parser = command_line()
    namespace = vars(parser.parse_args(argv))
    manifest = namespace.pop("manifest")
    try:
        faults = tuple(parse_fault(text) for text in namespace.pop("faults") or ())
        simulator = Simulator(SimulatorConfig(faults=faults, **namespace))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if manifest is not None:
        write_manifest(simulator, manifest)
    try:
        asyncio.run(_serve(simulator, manifest))
    except OSError as error:
        raise ConfigurationError(f"the port cannot be had: {error.strerror}") from error
    return 0


async def _serve(simulator: Simulator, manifest: Path | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with simulator:
        where = {
            "api_url": simulator.api_url,
            "auth_url": simulator.auth_url,
            "storage_url": simulator.storage_url,
        }
        print(json.dumps(where), flush=True)
        config = simulator.config
        if config.static_token:
            credentials = {"TOKEN": config.static_token}
        else:
            credentials = {"CLIENT_ID": config.client_id, "CLIENT_SECRET": config.client_secret}
        variables = {"API_URL": simulator.api_url, **credentials}
        say(f"serving {counted(config.patients, 'synthetic patient')}; to fetch their cards:")
        for name, value in variables.items():
            say(f"  export {ENV_PREFIX}{name}={shlex.quote(value)}")
        source = shlex.quote(str(manifest)) if manifest else "MANIFEST"
        say(f"  {program()} download {source} --out archive\nCtrl-C stops")
        await stopped.wait()


def write_manifest(simulator: Simulator, path: Path) -> None:
    """Write a manifest of all the simulator's patients, with a column to carry along.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["patient_id", "account_number"])
            for number, patient_id in enumerate(simulator.patient_ids(), start=1):
                writer.writerow([patient_id, f"A-{number:06d}"])
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
