"""Images a second into the training loop, against Ray Data's own way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raycnn
from raycnn.cluster import connect, division
from raycnn.config import AugmentConfig
from raycnn.data.dataset import TrainOrder, batches_per_block, stream
from raycnn.data.decode import Limits
from raycnn.data.manifest import read_index
from raycnn.data.plan import Plan
from raycnn.data.reader import COLUMNS, ImageReader
from raycnn.data.transforms import Preprocessing
from raycnn.storage import open_store
from tests.bench.command import Row, config_of
from tests.bench.pictures import write_tree

ROUNDS = 3
BATCH = 32
SIZE = 224


def ingest(root: Path) -> list[Row]:
    """From the first batch on, against ray.data.read_images."""
    write_tree(root / "photos", 1500)
    config = config_of(root / "photos", root / "runs", image_size=SIZE)
    with connect():
        manifest = raycnn.index(config)["manifest"]
        index = read_index(open_store(str(root / "runs")), Path(manifest).parent.name, [*COLUMNS, "split"])
        ours, theirs = alternate(lambda: our_rate(index), lambda: read_images_rate(root / "photos"))
    name = f"ingest to uint8 batches of {SIZE} px, JPEG 500x375, images/s, medians of {ROUNDS}"
    return [(name, f"{ours:.0f}", f"ray.data.read_images {theirs:.0f}", f"{ours / theirs:.2f}", ">= 2")]


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
