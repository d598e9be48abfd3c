"""`bulkfetch download`: the main job."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
from bulkfetch.errors import BulkfetchError, ConfigurationError
from bulkfetch.logs import Event, LogFormat, about
from bulkfetch.manifest import STANDARD_INPUT, Manifest, ManifestFormat
from bulkfetch.pipeline import Run
from bulkfetch.progress import Progress, Several, progress_for
from bulkfetch.settings import load, unknown_variables

if TYPE_CHECKING:
    from bulkfetch.metrics import Metrics

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
        log.warning("%s", mistake, extra=about(Event.variable_unknown))
    try:
        return _measured(namespace.manifest, settings)
    except BulkfetchError as error:
        if settings.log_format is LogFormat.text:
            raise
        log.error(  # noqa: TRY400  a traceback may hold secrets
            "%s",
            error,
            extra=about(Event.run_failed, error=str(error), exit_code=error.exit_status),
        )
        return error.exit_status


def _measured(source: str, settings: DownloadSettings) -> int:
    if settings.metrics_file is None and settings.metrics_port is None:
        return _download(source, settings)
    with _metrics(settings) as metrics:
        metrics.exit_status = _download(source, settings, metrics)
    return metrics.exit_status


def _download(source: str, settings: DownloadSettings, *watchers: Progress) -> int:
    with Manifest(
        source,
        settings.manifest_format,
        allow_empty=settings.allow_empty,
        shard=settings.shard,
    ) as manifest:
        facts = manifest.check()
        for example in facts.duplicate_examples:
            log.info("%s: fetched once", example, extra=about(Event.row_repeated))
        teller = Teller(lambda: job.interrupt(1), as_json=settings.as_json)
        shown = progress_for(settings.progress, settings.log_format)
        job = Run(manifest, facts, settings, progress=Several(shown, *watchers), foreseen=teller)
        summary = asyncio.run(running.do(job))
    if isinstance(summary, int):
        return summary
    if settings.log_format is LogFormat.text or not log.isEnabledFor(logging.INFO):
        # Else `run_finished` has told.
        running.show(summary, settings.out, may_go_on=job.fatal is None)
    if teller.lost is not None:
        raise teller.lost
    if settings.as_json:
        print(summary.model_dump_json())
    if job.fatal is not None:
        raise job.fatal
    return summary.exit_code


def _metrics(settings: DownloadSettings) -> Metrics:
    try:
        from bulkfetch.metrics import Metrics  # noqa: PLC0415  an extra
    except ImportError:
        raise ConfigurationError(
            "--metrics-file and --metrics-port need prometheus-client: "
            "pip install 'bulkfetch[metrics]'"
        ) from None
    shard = str(settings.shard) if settings.shard else None
    return Metrics(settings.metrics_file, settings.metrics_port, shard)


def _check_alone(namespace: argparse.Namespace) -> None:
    form = getattr(namespace, "manifest_format", None)
    if namespace.manifest != STANDARD_INPUT and form in (None, *ManifestFormat):
        form = ManifestFormat(form) if form else None
        with Manifest(namespace.manifest, form, allow_empty=True) as manifest:
            manifest.check()
