"""The Ray a command runs on, and how its CPUs are divided between training ranks and decoding tasks."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raycnn.dashboard import refuse_open
from raycnn.errors import ConfigError
from raycnn.scratch import scratch

_ENVIRONMENT = {
    # report() and the detection of a dead worker wait for this poll; Ray's default is 2 s
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # a decoding process takes 2 s of a core to start, and streams follow one another; Ray ends idle ones after 1 s
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # glibc gives threads arenas of their own, whose ends are never handed back: a pack grew by 10 MB with each trial
    "MALLOC_ARENA_MAX": "1",
}


TASKS_PER_CPU: Final = 2
"""Decoding tasks beside a GPU: while one waits for the store or for Ray to start it, the other decodes. Ranks that
compute on CPUs leave no time to be filled, and each task is a process that takes 2 s of a CPU to start."""


@dataclass(frozen=True)
class CpuDivision:
    """Ray CPUs: `per_rank` for each training rank, `task` for each decoding task, out of `total`; whether ranks get a
    GPU each.

    Decoding always keeps at least one task per rank running: two ranks that hold both CPUs of a machine would wait
    for their first batch for ever.
    """

    total: float
    per_rank: float
    task: float
    gpus: bool


def divide_cpus(total: float, workers: int, *, gpus: bool) -> CpuDivision:
    """Ray CPUs for `workers` ranks and their decoding tasks.

    A rank on a GPU needs one CPU to drive it, or less where CPUs are few; ranks that compute on CPUs and decoding
    share them half and half.

    Raises:
        ConfigError: more ranks than the CPUs could carry.
    """
    share = total / workers
    if share < 0.1:
        raise ConfigError(
            f"{workers} workers do not fit on {total:g} CPUs",
            where="train.workers",
            fix=f"use at most {int(total * 10)}",
        )
    per_rank = min(1.0, share / 2)
    if gpus and share >= 2:
        per_rank = 1.0
    task = min(1.0, share - per_rank) / (TASKS_PER_CPU if gpus else 1)
    return CpuDivision(total, round(per_rank, 3), round(task, 3), gpus)


def division(workers: int) -> CpuDivision:
    """`divide_cpus` for the cluster that this process is connected to; GPUs are used where every rank can have one."""
    found = resources()
    return divide_cpus(found["CPU"], workers, gpus=found.get("GPU", 0) >= workers)


def resources() -> dict[str, float]:
    """Ray's resources of this process's cluster, by name; not of nodes that are gone or to go."""
    import ray

    leaving = draining()
    found: Counter[str] = Counter()
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and node["NodeID"] not in leaving and _answers(node):
            found.update(node["Resources"])
    return dict(found)


def _answers(node: dict[str, Any]) -> bool:
    """Whether anybody listens there. Ray takes 15 s and more to notice that a node is gone; ranks that were divided
    among the nodes before would then hold all CPUs of those that are left, and wait for their first batch for ever."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=2).close()
    except OSError:
        return False
    return True


def draining() -> set[str]:
    """Ids of the nodes that will be taken away soon: a spot instance after its notice, a node that is scaled down."""
    from ray._private.state import state  # Ray Train's own way; there is no public one

    return set(state.get_draining_nodes())


@contextlib.contextmanager
def connect(address: str = "local", *, verbose: bool = False) -> Iterator[None]:
    """Inside, Ray is ready: a private one on this machine (`local`), or the cluster at `address` (`auto`: the one
    this machine belongs to). A Ray that the process already uses is used as it is and left running.

    Raises:
        ConfigError: no cluster answers at the address, or one that runs anyone's jobs without a token.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch()) if address == "local" else None
        stack.callback(ray.shutdown)
        try:
            _init(address, folder, logging.INFO if verbose else logging.ERROR, verbose)
            yield
        except ConnectionError as error:
            fix = "start it, or leave --address out to use this machine alone"
            raise ConfigError(f"no Ray cluster answers: {error}", where=address, fix=fix) from None


def _init(address: str, folder: str | None, level: int, verbose: bool) -> None:
    import ray

    if folder:
        ray.init(
            address="local", num_cpus=available_cpus(), include_dashboard=False, _temp_dir=folder,
            object_store_memory=_object_store_bytes(), logging_level=level, log_to_driver=verbose,
        )  # fmt: skip
    else:
        context = ray.init(address=address, logging_level=level, log_to_driver=verbose)
        if context.dashboard_url:
            refuse_open(context.dashboard_url)
    import ray.data

    ray.data.DataContext.get_current()  # sets up its loggers, which would undo the levels below later
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(level)


def _object_store_bytes() -> int:
    """Blocks decoded ahead lie here; Ray's own default, 30 % of the memory, only makes it decode further ahead."""
    wanted = 2 << 30
    return min(wanted, int(shutil.disk_usage("/dev/shm").free * 0.8)) if os.path.isdir("/dev/shm") else wanted


def available_cpus() -> int:
    """CPUs this process may run on: those it is bound to, or fewer by its container's limit."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        bound = min(bound, max(1, int(quota) // int(period)))
    return bound
