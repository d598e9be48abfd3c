"""Curves of how a run scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.scale import Sweep

mpl.use("Agg")


def draw(path: Path, sweep: Sweep, rows: Sequence[dict[str, Any]]) -> None:
    """Draw what a sweep found: the rate, its limit where there is one, and the peak memory."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    values = [row[sweep.name] for row in rows]
    axes.plot(values, [row["a second"] for row in rows], "o-", label=f"{sweep.counted} a second")
    limited = [row for row in rows if row["limit a second"] != ""]
    if limited:
        axes.plot(
            [row[sweep.name] for row in limited],
            [row["limit a second"] for row in limited],
            ":",
            color="grey",
            label="the limit by Little's law",
        )
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if sweep.is_logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(sweep.title, wrap=True)
    axes.set_ylabel(f"{sweep.counted} a second")
    axes.grid(alpha=0.3)
    memory = axes.twinx()
    memory.plot(values, [row["peak MB"] for row in rows], "s--", color="tab:orange", alpha=0.6)
    memory.set_ylim(0, 150)
    memory.set_ylabel("peak MB of one process (dashed)")
    axes.legend(loc="best")
    figure.savefig(path, dpi=110)
