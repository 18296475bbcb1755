"""CPU seconds of a driver and all processes below it, by what they are."""

from __future__ import annotations

import threading
import time
from collections import Counter

import psutil

_MARKS = {
    "gcs_server": "gcs", "raylet/raylet": "raylet", "SplitCoordinator": "coordinator", "TrainController": "controller",
    "ray::Reader": "reader", "ray::": "task",
}  # fmt: skip
_LOOP = "StreamingExecutor"


def cpu_seconds(driver: psutil.Process | None = None) -> Counter[str]:
    """By kind: driver, gcs, raylet, coordinator, controller, reader, task, other; of those that live now.

    Args:
        driver: whose processes; this one by default.
    """
    found: Counter[str] = Counter()
    driver = driver or psutil.Process()
    for process in (driver, *driver.children(recursive=True)):
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        kind = "driver" if process == driver else next((k for mark, k in _MARKS.items() if mark in line), "other")
        found[kind] += times.user + times.system
    return found


def loop_seconds() -> float:
    """CPU seconds of the threads of this process that are Ray Data's scheduling loops."""
    loops = (thread for thread in threading.enumerate() if thread.name.startswith(_LOOP) and thread.ident)
    return sum(time.clock_gettime(time.pthread_getcpuclockid(loop.ident)) for loop in loops if loop.ident)
