"""One command, run as a whole process and accounted for by the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The kernel counts a process's peak from before its program is loaded, when it still is a copy of
# the one that started it. So a small one starts it, and tells what it took.
_STARTER = """
import json, os, sys, time
began = time.monotonic()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
wall_s = time.monotonic() - began
print(json.dumps([wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]), flush=True)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds on the clock, seconds of CPU, and the peak of one process."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def run(command: Sequence[str | Path]) -> Cost:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    words = [str(part) for part in command]
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", _STARTER, *words], capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode()[-2000:]
        raise SystemExit(f"{words[0]} ended with {done.returncode}:\n{said}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))
