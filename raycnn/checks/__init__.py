"""`raycnn doctor`: what would stop a run, found before it starts. Each check is one small function."""

from __future__ import annotations

import tempfile
from pathlib import Path

from raycnn.checks.check import Check
from raycnn.checks.cluster import cluster_authentication, cluster_checks
from raycnn.checks.machine import disk_space, graphics, open_files, own_processors, processors, shared_memory, versions
from raycnn.checks.store import storage_checks
from raycnn.config import Config

__all__ = ["Check", "checks", "cluster_authentication"]


def checks(config: Config | None, address: str = "local") -> list[Check]:
    """Every check that applies.

    Args:
        config: the run to check for; without it only the machine and the cluster are looked at.
        address: `local`, an address that `ray.init` takes, or the http(s):// URL of a dashboard.
    """
    temporary = disk_space("temporary space", Path(tempfile.gettempdir()))
    found = [versions(), open_files(), shared_memory(), temporary]
    workers = config.train.workers if config else 1
    if address == "local":
        found += [graphics(), processors(workers, *own_processors())]
    elif address.startswith(("http://", "https://")):
        found.append(cluster_authentication(address))
    else:
        found += cluster_checks(address, workers)
    return found + (storage_checks(config) if config else [])
