"""The stages wired together: the only place that starts tasks, and processes.

`run` is a run as a whole, `record` what it leaves about itself, and `patients` what one process of
it has in hand. Where there are several, `processes` is how the first sees the others, `helper` is
one of those, and `wire` is what they say to each other.
"""

from __future__ import annotations

from bulkfetch.pipeline.patients import GRACE_S
from bulkfetch.pipeline.run import Run

__all__ = ["GRACE_S", "Run"]
