"""raycnn's command line as a user runs it, timed and watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

Row = tuple[str, str, str, str, str]
"""What was measured, raycnn's figure, what it is held against, their ratio, the goal."""

KINDS = {
    "RayTrainWorker": "rank", "ray::Pack": "pack",
    "decode_block": "decoder", "MapBatches": "decoder", "ReadRange": "decoder",
}  # fmt: skip


def config_of(source: Path, storage: Path, image_size: int = 32, **changes: Any) -> dict[str, Any]:
    train = {"epochs": 1, "global_batch": 32, "workers": 2, "chunk": 32}
    train |= {path.removeprefix("train."): value for path, value in changes.items()}
    return {
        "run": {"name": "bench", "storage": str(storage)},
        "data": {"source": str(source), "image_size": image_size},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": train,
    }


def timed(verb: str, config: dict[str, Any], folder: Path, *flags: str) -> tuple[dict[str, Any], float]:
    """What `raycnn VERB --json` prints, and the seconds from the command to its end."""
    start = time.perf_counter()
    printed = subprocess.run([*command_of(verb, config, folder), *flags], stdout=subprocess.PIPE, check=True).stdout
    return json.loads(printed), time.perf_counter() - start


def watched(config: dict[str, Any], root: Path, *, verb: str = "train") -> dict[str, float]:
    """Peak MB by kind of process, and the seconds."""
    found: dict[str, float] = {}
    start = time.perf_counter()
    command = command_of(verb, config, root)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as job:
        while job.poll() is None:
            time.sleep(0.1)
            _sample(psutil.Process(job.pid), found)
        if job.returncode:
            raise subprocess.CalledProcessError(job.returncode, command)
    found["seconds"] = time.perf_counter() - start
    return found


def plain_environment() -> dict[str, str]:
    """For a process that is not raycnn's: without the settings that raycnn gives its Ray."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return found | {"PYTHONPATH": os.getcwd(), "RAY_USAGE_STATS_ENABLED": "0"}


def command_of(verb: str, config: dict[str, Any], folder: Path) -> list[str]:
    path = folder / f"{verb}.yaml"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "raycnn.cli", verb, str(path), "--json"]


def _sample(driver: psutil.Process, peaks: dict[str, float]) -> None:
    """Raise the peaks to what the processes hold now."""
    processes = [(driver, "driver")]
    for child in driver.children(recursive=True):
        try:
            kind = next((kind for mark, kind in KINDS.items() if mark in " ".join(child.cmdline())), None)
        except psutil.Error:
            continue
        if kind:
            processes.append((child, kind))
    for process, kind in processes:
        try:
            peaks[kind] = max(peaks.get(kind, 0), process.memory_full_info().uss / 2**20)
        except psutil.Error:
            continue
