"""The stages wired together: the only place that starts tasks, and processes.

`run` is a run as a whole, `record` what it leaves about itself, `showing` how it is seen meanwhile,
and `patients` what one process of it has in hand. Where there are several, `crew` is how the first
sees the others, `worker` what those do, and `wire` what they say to each other. They are processes
of this machine (`processes`, and `helper` at the other end), or of a cluster (`cluster`, and
`actors`), as `engines` chooses.
"""

from __future__ import annotations

from bulkfetch.pipeline.patients import GRACE_S
from bulkfetch.pipeline.run import Run

__all__ = ["GRACE_S", "Run"]
