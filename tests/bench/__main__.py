"""python -m tests.bench: one table; every ratio's two sides were measured in this run, interleaved."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import raycnn
from raycnn.cluster import available_cpus, connect, division
from raycnn.config import AugmentConfig
from raycnn.data.dataset import TrainOrder, batches_per_block, stream
from raycnn.data.decode import Limits
from raycnn.data.manifest import read_index
from raycnn.data.plan import Plan
from raycnn.data.reader import COLUMNS, ImageReader
from raycnn.data.transforms import Preprocessing
from raycnn.storage import open_store
from tests.bench.pictures import write_tree

ROUNDS = 3
BATCH = 32
SIZE = 224


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory(prefix="raycnn-bench-") as folder:
        root = Path(folder)
        write_tree(root / "photos", 1500)
        rows.append(ingest(root))
        rows.append(first_step(root))
        rows += memory(root)
        rows.append(large_index(root))
    print(f"\n{available_cpus()} CPUs, Python {sys.version.split()[0]}; medians of {ROUNDS}\n")
    print("| what | raycnn | against | ratio | goal |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def ingest(root: Path) -> tuple[str, ...]:
    """Images a second into the loop, from the first batch on, against Ray Data's read_images."""
    config = config_of(root / "photos", root / "runs", image_size=SIZE)
    with connect():
        manifest = raycnn.index(config)["manifest"]
        index = read_index(open_store(str(root / "runs")), Path(manifest).parent.name, [*COLUMNS, "split"])
        ours, theirs = alternate(lambda: our_rate(index), lambda: read_images_rate(root / "photos"))
    name = f"ingest to uint8 batches of {SIZE} px, JPEG 500x375, images/s"
    return name, f"{ours:.0f}", f"ray.data.read_images {theirs:.0f}", f"{ours / theirs:.2f}", ">= 2"


def our_rate(index: Any) -> float:
    """Random resized crops; one rank's stream with the CPUs of a rank that only waits."""
    prep = Preprocessing(SIZE, 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
    reader = ImageReader(index.source, prep, Limits(10**8, 10**8), augment=AugmentConfig())
    table = index.rows("train").select(COLUMNS)
    plan = Plan(len(table), BATCH, 0)
    order = TrainOrder(plan, 0, 1, 0, plan.steps(2), batches_per_block(BATCH))
    return rate(len(batch.rows) for batch in stream(reader, table, order, task_cpus=division(1).total / 2))


def read_images_rate(folder: Path) -> float:
    """read_images decodes and squashes to SIZE; no crop, no flip, order as it comes."""
    import ray

    dataset = ray.data.read_images(str(folder), size=(SIZE, SIZE), mode="RGB")
    dataset = dataset.union(ray.data.read_images(str(folder), size=(SIZE, SIZE), mode="RGB"))
    dataset.context.enable_progress_bars = False
    return rate(len(batch["image"]) for batch in dataset.iter_torch_batches(batch_size=BATCH))


def rate(batches: Any) -> float:
    """Rows a second after the first batch."""
    rows, start = 0, None
    for size in batches:
        if start is None:
            start = time.perf_counter()
        else:
            rows += size
    assert start is not None
    return rows / (time.perf_counter() - start)


def alternate(ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """Medians of ROUNDS measurements of each, in turn."""
    pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def first_step(root: Path) -> tuple[str, ...]:
    """Seconds from the command to the commit of step 1, index included."""
    seconds = []
    for number in range(ROUNDS):
        config = config_of(root / "photos", root / f"first-{number}", **{"train.checkpoint_every": 1})
        seconds.append(watched(config, root, until_step_1=True)["first_step"])
    median = statistics.median(seconds)
    return "command to first step, with a fresh index of 1,500 images, s", f"{median:.1f}", "-", "-", "<= 30"


def memory(root: Path) -> list[tuple[str, ...]]:
    """Peak unique memory of the driver and of a rank, at 2,000 and 20,000 rows."""
    peaks = {}
    for count in (2000, 20_000):
        write_tree(root / f"small-{count}", count, width=48, height=48, quality=80)
        config = config_of(root / f"small-{count}", root / f"memory-{count}")
        peaks[count] = watched(
            config,
            root,
        )
    rows = []
    for process in ("driver", "rank", "decoder"):
        few, many = peaks[2000][process], peaks[20_000][process]
        rows.append(
            (
                f"peak memory of the {process}, 20,000 rows, MB",
                f"{many:.0f}",
                f"2,000 rows {few:.0f}",
                f"{many / few:.2f}",
                "flat",
            )
        )
    return rows


def large_index(root: Path) -> tuple[str, ...]:
    """Peak memory of the driver that indexes 100,000 objects, and how long that takes the first and the second time."""
    write_tree(root / "many", 100_000, width=32, height=32, quality=70)
    config = config_of(root / "many", root / "many-runs")
    first, second = (watched(config, root, verb="index") for _ in range(2))
    seconds = f"{first['seconds']:.0f} s, again {second['seconds']:.0f} s"
    return "index of 100,000 objects: peak memory of the driver, MB", f"{first['driver']:.0f}", seconds, "-", "bounded"


KINDS = {"RayTrainWorker": "rank", "decode_block": "decoder", "MapBatches": "decoder", "ReadRange": "decoder"}


def watched(config: dict[str, Any], root: Path, *, until_step_1: bool = False, verb: str = "train") -> dict[str, float]:
    """Run `raycnn VERB` as a user would; peak MB by kind of process, and seconds to the first commit after step 0."""
    path = root / "run.yaml"
    path.write_text(json.dumps(config))
    store = open_store(config["run"]["storage"]).child(config["run"]["name"])
    found: dict[str, float] = {}
    start = time.perf_counter()
    command = [sys.executable, "-m", "raycnn.cli", verb, str(path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as job:
        while job.poll() is None:
            time.sleep(0.1)
            sample(psutil.Process(job.pid), found)
            first = any(
                "step-00000001" in e.key and e.key.endswith("MANIFEST.json") for e in store.list("checkpoints/")
            )
            if until_step_1 and first:
                found["first_step"] = time.perf_counter() - start
                job.terminate()
                break
        job.wait()
    found["seconds"] = time.perf_counter() - start
    return found


def sample(driver: psutil.Process, peaks: dict[str, float]) -> None:
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


def config_of(source: Path, storage: Path, image_size: int = 32, **changes: Any) -> dict[str, Any]:
    train = {"epochs": 1, "global_batch": 32, "workers": 2, "chunk": 32}
    train |= {path.removeprefix("train."): value for path, value in changes.items()}
    return {
        "run": {"name": "bench", "storage": str(storage)},
        "data": {"source": str(source), "image_size": image_size},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": train,
    }


if __name__ == "__main__":
    main()
