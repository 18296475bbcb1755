"""A worker node as a process of its own, on loopback: python -m tests.faults.kit.node GCS_ADDRESS NUM_CPUS

`ray start --address` refuses loopback; `ray.cluster_utils.Cluster` makes nodes this way, inside of the test's process.
"""

from __future__ import annotations

import signal
import sys

from ray._private.node import Node
from ray._private.parameter import RayParams

if __name__ == "__main__":
    address, num_cpus = sys.argv[1], int(sys.argv[2])
    params = RayParams(
        gcs_address=address,
        redis_address=address,
        node_ip_address="127.0.0.1",
        num_cpus=num_cpus,
        num_gpus=0,
        object_store_memory=100_000_000,
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
        include_log_monitor=False,
    )
    params.dashboard_agent_listen_port = None  # a free one
    node = Node(params, head=False, shutdown_at_exit=True, spawn_reaper=False)
    signal.pause()
