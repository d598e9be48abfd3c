"""The command line: each command is a module of its own, imported when it is called.

So `bulkfetch --help` starts at once.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence

from bulkfetch.cli.parser import Parser

# As in `bulkfetch/__init__.py`: it saves an import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COMMANDS = {
    "download": "fetch every image of the patients in a manifest",
    "verify": "re-read an archive and prove it: nothing missing, changed or stray",
    "status": "how far the run in progress is, or how the last one ended",
    "report": "one page to look at: totals, failures, rates, and a contact sheet",
    "bag": "pack an archive that verifies as a BagIt bag, to hand it over",
    "doctor": "check credentials, API, storage, destination; say what is wrong",
    "manifest": "make a manifest from the API, check one, split one",
    "demo": "run the main job against an embedded simulator: start here",
    "simulate": "serve the simulated API and storage on loopback, until stopped",
    "schema": "print the JSON Schema of a sidecar or a run's summary",
    "completion": "print what makes a shell complete commands, options and files",
}
DESCRIPTION = (
    "Bulk export of patients' insurance-card images from the Candid Health pre-encounter API."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status (see "Exit status" in the README)."""
    _open_what_is_closed()
    _let_words_be_lost()
    parser = Parser(
        prog="bulkfetch",
        usage="bulkfetch COMMAND [OPTIONS]",
        description=DESCRIPTION,
        epilog="commands:\n"
        + "".join(f"  {name:<11} {what}\n" for name, what in COMMANDS.items())
        + "\nexample:\n  bulkfetch demo\n  bulkfetch download --help",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.version:
        from bulkfetch._version import __version__  # noqa: PLC0415  only this option needs it

        print(f"bulkfetch {__version__}")
        return 0
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    parser.refuse_unknown(given.command, COMMANDS)
    return _call(given.command, given.rest)


def _call(command: str, argv: Sequence[str]) -> int:
    # What is loaded stays: to look for garbage in it is a sixth of what a command takes to begin.
    gc.disable()
    from bulkfetch.errors import BulkfetchError, unexpected  # noqa: PLC0415  not needed for help
    from bulkfetch.logs import redact  # noqa: PLC0415  the same

    module = importlib.import_module(f"bulkfetch.cli.{command}")
    gc.enable()
    try:
        status = module.run(argv)
        sys.stdout.flush()
    except BulkfetchError as error:
        print(f"bulkfetch: {redact(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("bulkfetch: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read standard output went away: not worth a word, but no success either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # The archive's errors have names of their own: this is standard output or error.
        print(f"bulkfetch: cannot write the answer: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  the last resort: a traceback may hold secrets
        print(f"bulkfetch: {unexpected(error)}", file=sys.stderr)
        return 1
    return int(status)


def _open_what_is_closed() -> None:
    """Put an empty device where the caller closed a standard stream, as with `2>&-`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest free descriptor is the one that was closed, if those before are open.
            device = os.open(os.devnull, os.O_RDWR)
            if device != number:
                os.dup2(device, number)
                os.close(device)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


class _Lossy(io.FileIO):
    """A file that drops what cannot be written to it."""

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size
        except OSError:
            return size


def _let_words_be_lost() -> None:
    """Let no disk that is full, nor a terminal or a pipe that is gone, end what is told of."""
    stderr = sys.__stderr__
    if stderr is not None and stderr is sys.stderr:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Lossy(2, "w", closefd=False)),
            stderr.encoding,
            stderr.errors,
            line_buffering=True,
        )
