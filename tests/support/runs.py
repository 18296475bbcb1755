"""What a run left behind, for tests that compare runs."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import psutil

from raycnn.storage import Store
from raycnn.training import checkpoint
from tests.support.waiting import wait_for

_TIMINGS = ("seconds", "time")


def final_hashes(store: Store) -> dict[str, Any]:
    """sha256 of the newest checkpoint's files; its step; the metrics without their timings."""
    commit = checkpoint.latest(store, None)
    assert commit is not None
    files = {
        name: commit.manifest["files"][name]["sha256"] for name in ("weights.safetensors", "optimizer.pt", "state.json")
    }
    return {"step": commit.step, **files, "metrics": metrics(store)}


def kill_one_worker(store: Store) -> None:
    """kill -9 of a rank as soon as a first commit after step 0 is there."""

    def commits() -> list[str]:
        keys = (entry.key for entry in store.list("checkpoints/") if entry.key.endswith("MANIFEST.json"))
        return [key for key in keys if "step-00000000" not in key]

    wait_for(commits, "a commit after step 0")
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    os.kill(workers[-1].pid, signal.SIGKILL)


def metrics(store: Store) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their timings, and without those on what an epoch's time went to."""
    lines = [json.loads(line) for line in store.get("metrics.jsonl").decode().splitlines()]
    lines = [line for line in lines if "verdict" not in line]
    return [{name: value for name, value in line.items() if name not in _TIMINGS} for line in lines]
