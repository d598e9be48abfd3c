"""What the pages say to type is typed, as it stands there, and what they show is what comes.

A `console` block has commands after `$ `, each with what it shows. `...` alone in a line stands for
any lines. What is never twice the same (times, rates, digests, run IDs) is compared by its form.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.command import put_on_path

ROOT = Path(__file__).parents[1]
PATIENCE_S = 280
"""For all that a page says: some start the command twenty times."""

_END = "--- end of the command ---"
_PASSING = re.compile(r"^\d+/\d+ patients, .*\n|^\d[\d,]* patients?, .* coverages?\n", re.MULTILINE)
_FORMS = (
    (re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}"), "<run>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<digest>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "<time>"),
    (re.compile(r"\b\d[\d.,]*(?= (?:m?s|k?B/s|MB/s)\b)"), "<n>"),
    (re.compile(r"(?<= )(?:B|kB|MB)/s"), "<unit>"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page, and what the page says that it shows."""

    command: str
    shows: str


def page(name: str) -> str:
    """Return a page of the documentation."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Return a page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def steps(text: str) -> list[Step]:
    """Return the commands of a page's `console` blocks, in order."""
    found = []
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shows = part.partition("\n")
            while command.endswith("\\"):
                more, _, shows = shows.partition("\n")
                command += f"\n{more.removeprefix('> ')}"
            found.append(Step(command, shows))
    return found


def play(script: Sequence[Step], here: Path, environment: Mapping[str, str]) -> list[str]:
    """Type the commands into one shell, in the directory `here`, and return what each shows."""
    home = put_on_path(here / "bin").parent
    output = here / "output"
    lines = ["set +m", f"exec >{shlex.quote(str(output))} 2>&1 </dev/null"]
    for step in script:
        if step.command.endswith("&"):
            # It is at work once it has said all that it says, as another one may have before.
            last = step.shows.splitlines()[-1]
            said = f"$(grep -cF {shlex.quote(last)} {shlex.quote(str(output))})"
            lines += [f"before={said}", step.command]
            lines.append(f"while [ {said} = $before ]; do sleep 0.1; done")
        else:
            lines.append(step.command)
        # The next command may ask for the status of this one.
        lines.append(f"(s=$?; echo {shlex.quote(_END)}; exit $s)")
    path = f"{home}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=here, env={**os.environ, **environment, "PATH": path}, start_new_session=True,
    ) as shell:  # fmt: skip
        try:
            shell.wait(PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return output.read_text(encoding="utf-8").split(f"{_END}\n")[:-1]


def free_pair() -> int:
    """A port that is free, as is the next one; none that the system gives to whoever asks."""
    while True:
        port = random.randrange(20_000, 30_000, 2)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port


def form(text: str) -> str:
    """Return what is compared of what a command shows."""
    text = _PASSING.sub("", text)
    for pattern, name in _FORMS:
        text = pattern.sub(name, text)
    return text


def is_shown(step: Step, came: str) -> bool:
    """Tell whether what came is what the page shows."""
    parts = re.split(r"^\.\.\.\n", form(step.shows), flags=re.MULTILINE)
    return re.fullmatch(r"(?:.*\n)*".join(map(re.escape, parts)), form(came)) is not None


def compare(script: Sequence[Step], came: Sequence[str]) -> None:
    """See that each command of a page showed what the page says.

    Raises:
        AssertionError: one did not; it has both.
    """
    assert len(came) == len(script), f"it ended at: {script[len(came)].command}"
    for step, text in zip(script, came, strict=True):
        assert is_shown(step, text), f"$ {step.command}\n{text}\n--- and not ---\n{step.shows}"
