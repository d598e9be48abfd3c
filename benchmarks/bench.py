"""What all benchmarks share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.server import Served, serving


class Bench:
    """The size of all benchmarks, where they work, and what they found."""

    def __init__(self, *, rounds: int, divisor: int, save: Path) -> None:
        self.rounds = rounds
        self.divisor = divisor
        self.save = save
        memory = Path("/dev/shm")
        self.scratch = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
        self.results: dict[str, list[dict[str, Any]]] = {}

    @contextmanager
    def served(self, **fields: Any) -> Iterator[Served]:  # noqa: ANN401  as `serving` takes them
        """Serve from memory."""
        with (
            tempfile.TemporaryDirectory(dir=self.scratch, prefix="bulkfetch-bench-") as directory,
            serving(Path(directory) / "server", **fields) as served,
        ):
            os.environ |= {"BULKFETCH_API_URL": served.url, "BULKFETCH_TOKEN": "benchmark"}
            yield served

    @contextmanager
    def directory(self, parent: Path | None = None) -> Iterator[Path]:
        """A fresh directory, in memory unless another is named."""
        made = tempfile.mkdtemp(dir=parent or self.scratch, prefix="bulkfetch-bench-")
        try:
            yield Path(made)
        finally:
            shutil.rmtree(made)

    def tell(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Print a table."""
        self.results[title] = rows
        names = list(rows[0])
        print(f"\n{title}\n")
        print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
        for row in rows:
            print("| " + " | ".join(str(row[name]) for name in names) + " |", flush=True)
