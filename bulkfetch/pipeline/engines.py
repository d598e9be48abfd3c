"""Which engine starts a run's processes."""

from __future__ import annotations

from bulkfetch.errors import ConfigurationError
from bulkfetch.limits import processes_for
from bulkfetch.pipeline.cluster import Cluster
from bulkfetch.pipeline.crew import Engine
from bulkfetch.pipeline.processes import Processes
from bulkfetch.settings import EngineName, Settings


def engine_for(settings: Settings, patients: int) -> Engine:
    """Return the engine of a run over so many patients.

    Raises:
        ConfigurationError: options are of another engine than the one that is chosen.
    """
    is_ray = settings.engine is EngineName.ray
    if is_ray and settings.processes:
        raise ConfigurationError("--processes is for --engine local: give --ray-workers")
    if not is_ray and (settings.ray_address or settings.ray_workers):
        raise ConfigurationError(
            "--ray-address and --ray-workers are for --engine ray: give that, too"
        )
    if is_ray and not settings.dry_run:
        return Cluster(settings)
    return Processes(settings, processes_for(settings, patients))
