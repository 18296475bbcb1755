"""How soon training starts and how much memory it and the index take."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

from raycnn.storage import open_store
from tests.bench.command import Row, config_of, timed, watched
from tests.bench.pictures import write_tree

ROUNDS = 3


def first_step(root: Path) -> list[Row]:
    """Seconds from the command to the end of step 1 by the run's own log, index included."""
    write_tree(root / "photos", 1500)
    seconds = []
    for number in range(ROUNDS):
        config = config_of(root / "photos", root / f"first-{number}", **{"train.log_every": 1})
        start = time.time()
        timed("train", config, root)
        first = open_store(config["run"]["storage"]).get("bench/metrics.jsonl").splitlines()[0]
        seconds.append(json.loads(first)["time"] - start)
    name = f"command to first step, with a fresh index of 1,500 images, s, median of {ROUNDS}"
    return [(name, f"{statistics.median(seconds):.1f}", "-", "-", "<= 30")]


def memory(root: Path) -> list[Row]:
    """Peak unique memory of the driver and of a rank, at 2,000 and 20,000 rows."""
    peaks = {}
    for count in (2000, 20_000):
        write_tree(root / f"small-{count}", count, width=48, height=48, quality=80)
        peaks[count] = watched(config_of(root / f"small-{count}", root / f"memory-{count}"), root)
    rows = []
    for process in ("driver", "rank", "decoder"):
        few, many = peaks[2000][process], peaks[20_000][process]
        name = f"peak memory of the {process}, 20,000 rows, MB"
        rows.append((name, f"{many:.0f}", f"2,000 rows {few:.0f}", f"{many / few:.2f}", "flat"))
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
