"""How soon training starts and how much memory it and the index take."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raycnn.scratch import scratch
from raycnn.storage import open_store
from tests.bench.command import Row, config_of, plain_environment, timed, watched
from tests.bench.pictures import write_tree

ROUNDS = 3


def first_step(root: Path, images: int = 1500) -> list[Row]:
    """Seconds from the command to the end of step 1 by the run's own log; from a bare script to its loop."""
    write_tree(root / "photos", images)
    fresh, again, bare = [], [], []
    for number in range(ROUNDS):
        config = config_of(root / "photos", root / f"first-{number}", **{"train.log_every": 1})
        fresh.append(_first_step(config, root))
        config["run"]["name"] = "again"
        again.append(_first_step(config, root))
        bare.append(_bare_start())
        print(f"fresh {fresh[-1]:.1f} s, again {again[-1]:.1f} s, bare {bare[-1]:.1f} s", file=sys.stderr, flush=True)
    first, second, least = map(statistics.median, (fresh, again, bare))
    name = f"command to first step, with a fresh index of {images:,} images, s, median of {ROUNDS}"
    other = f"command to first step, with an index that is there, s, medians of {ROUNDS}"
    theirs = f"bare ray.init and TorchTrainer to its loop {least:.1f}"
    return [
        (name, f"{first:.1f}", "-", "-", "<= 30"),
        (other, f"{second:.1f}", theirs, f"{second / least:.2f}", "<= 1.3"),
    ]


def _first_step(config: dict[str, Any], root: Path) -> float:
    start = time.time()
    timed("train", config, root)
    log = open_store(config["run"]["storage"]).child(config["run"]["name"]).get("metrics.jsonl")
    return float(json.loads(log.splitlines()[0])["time"]) - start


def _bare_start() -> float:
    with scratch() as folder:
        start = time.time()
        command = [sys.executable, "-m", "tests.bench.bare_train", folder]
        subprocess.run(command, check=True, env=plain_environment(), capture_output=True)
        return float((Path(folder) / "entered").read_text()) - start


def memory(root: Path, few: int = 2000, many: int = 50_000, epochs: int = 20) -> list[Row]:
    """Peak unique memory of the processes, with few and many images, and in the last of many epochs."""
    for count in (few, many):
        write_tree(root / f"small-{count}", count, width=48, height=48, quality=80)
    write_tree(root / "few", 640, width=48, height=48, quality=80)
    sides = {
        "few": (f"small-{few}", 1),
        "many": (f"small-{many}", 1),
        "one epoch": ("few", 1),
        "epochs": ("few", epochs),
    }
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(ROUNDS):
        for side, (folder, length) in sides.items():
            storage = root / f"memory-{side}-{number}"
            found[side].append(watched(config_of(root / folder, storage, **{"train.epochs": length}), root))
            print(f"{side}: {found[side][-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(storage)
    compared = [
        *(("many", "few", process, f"{many:,} images", f"{few:,} images") for process in ("driver", "rank", "decoder")),
        *(("epochs", "one epoch", process, f"{epochs} epochs", "1 epoch") for process in ("driver", "rank")),
    ]
    rows = []
    for more, less, process, what, against in compared:
        mine, other = (statistics.median(peaks[process] for peaks in found[side]) for side in (more, less))
        name = f"peak memory of the {process}, {what}, MB, medians of {ROUNDS}"
        rows.append((name, f"{mine:.0f}", f"{against} {other:.0f}", f"{mine / other:.2f}", "<= 1.1"))
    return rows


def large_index(root: Path) -> list[Row]:
    """Peak memory of the driver that indexes 100,000 objects, and how long that takes the first and the second time."""
    write_tree(root / "many", 100_000, width=32, height=32, quality=70)
    config = config_of(root / "many", root / "many-runs")
    first, second = (watched(config, root, verb="index") for _ in range(2))
    seconds = f"{first['seconds']:.0f} s, again {second['seconds']:.0f} s"
    return [
        ("index of 100,000 objects: peak memory of the driver, MB", f"{first['driver']:.0f}", seconds, "-", "bounded")
    ]
