"""`bulkfetch download`: the main job."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence

from bulkfetch import logs
from bulkfetch.cli import running
from bulkfetch.cli.forecast import Teller
from bulkfetch.cli.options import (
    ENVIRONMENT_NOTE,
    DownloadSettings,
    add_options,
    command_parser,
    given_options,
)
from bulkfetch.cli.parser import Parser
from bulkfetch.errors import ConfigurationError
from bulkfetch.manifest import STANDARD_INPUT, Manifest, ManifestFormat
from bulkfetch.pipeline import Run
from bulkfetch.progress import progress_for
from bulkfetch.settings import load, unknown_variables

log = logging.getLogger(__name__)


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "download",
        "Fetch every image of the patients in a manifest into an archive.\n"
        "What is there already is not fetched again.\n\n" + ENVIRONMENT_NOTE,
        [
            "bulkfetch download patients.csv --out archive",
            "bulkfetch download patients.csv --out archive --environment staging --dry-run",
            "zcat ids.txt.gz | bulkfetch download - --manifest-format txt -o archive",
        ],
        arguments="MANIFEST --out DEST",
    )
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="a .csv, .tsv, .txt, .jsonl (each also .gz) or .parquet file; - for standard input",
    )
    add_options(parser, DownloadSettings)
    return parser


def run(argv: Sequence[str]) -> int:
    """Fetch every image of the patients in a manifest."""
    parser = command_line()
    namespace = parser.parse_args(argv)
    try:
        settings = load(DownloadSettings, given_options(namespace, "manifest"))
    except ConfigurationError as error:
        running.say(f"bulkfetch: {logs.redact(str(error))}")
        # What is wrong with the manifest is told too, so that all can be corrected at once.
        _check_alone(namespace)
        return error.exit_status
    logs.configure(settings.log_level, settings.log_format)
    for mistake in unknown_variables():
        log.warning("%s", mistake)
    with Manifest(
        namespace.manifest,
        settings.manifest_format,
        allow_empty=settings.allow_empty,
        shard=settings.shard,
    ) as manifest:
        facts = manifest.check()
        for example in facts.duplicate_examples:
            log.info("%s: fetched once", example)
        teller = Teller(lambda: job.interrupt(1), as_json=settings.as_json)
        job = Run(
            manifest, facts, settings, progress=progress_for(settings.progress), foreseen=teller
        )
        summary = asyncio.run(running.do(job))
    if isinstance(summary, int):
        return summary
    running.show(summary, settings.out, may_go_on=job.fatal is None)
    if teller.lost is not None:
        raise teller.lost
    if settings.as_json:
        print(summary.model_dump_json())
    if job.fatal is not None:
        raise job.fatal
    return summary.exit_code


def _check_alone(namespace: argparse.Namespace) -> None:
    form = getattr(namespace, "manifest_format", None)
    if namespace.manifest != STANDARD_INPUT and form in (None, *ManifestFormat):
        form = ManifestFormat(form) if form else None
        with Manifest(namespace.manifest, form, allow_empty=True) as manifest:
            manifest.check()
