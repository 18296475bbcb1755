"""raycnn's ways: through Ray, its decode path in bare threads, and the limit of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg

from raycnn.config import AugmentConfig
from raycnn.data.dataset import TrainOrder, batches_per_block, stream
from raycnn.data.decode import Limits
from raycnn.data.fetch import threads_for
from raycnn.data.manifest import Index, read_index
from raycnn.data.plan import Plan, lying
from raycnn.data.reader import COLUMNS, ImageReader
from raycnn.data.transforms import Preprocessing
from raycnn.storage import open_store
from tests.bench.pipelines import BATCH, MEAN, SIZE, STD, WORKERS

PREPROCESSING = Preprocessing(SIZE, 0.875, "bilinear", MEAN, STD)


def raycnn(index: str, neighbours: int = 1) -> Iterator[int]:
    """One rank's stream, with the CPUs of a rank that only waits; normalised as on the device.

    Args:
        index: STORAGE/index/HASH.
        neighbours: images that are read together.
    """
    import torch

    from raycnn.cluster import TASKS_PER_CPU, connect
    from raycnn.training.device import Normalize, prepare, to_device

    prepare(torch.device("cpu"), 1)
    normalize, pinned = Normalize(PREPROCESSING), _index(index)
    with connect():
        for batch in stream(_reader(pinned), *_work(pinned, neighbours=neighbours), task_cpus=1 / TASKS_PER_CPU):
            normalize(to_device(batch.images_NHWC, torch.device("cpu")))
            yield len(batch.rows)


def neighbours(index: str) -> Iterator[int]:
    """The same from shards, eight neighbours at a time."""
    return raycnn(index, neighbours=8)


def paced(index: str, rate: float, late: list[float]) -> Iterator[int]:
    """The stream as a GPU takes it that trains `rate` images a second: a batch when it is done with the one before.

    Args:
        index: STORAGE/index/HASH.
        rate: images a second.
        late: becomes the seconds that the GPU waited for each batch.
    """
    from raycnn.cluster import TASKS_PER_CPU, connect

    pinned = _index(index)
    with connect():
        due = 0.0
        for batch in stream(_reader(pinned), *_work(pinned, epochs=3), task_cpus=1 / TASKS_PER_CPU):
            now = time.perf_counter()
            late.append(max(0.0, now - due))
            time.sleep(max(0.0, due - now))
            due = max(due, now) + len(batch.rows) / rate  # a step that began late ends late
            yield len(batch.rows)


def threads(index: str) -> Iterator[int]:
    """The decode path alone, block after block: fetch, verify, decode, crop and resize; uint8."""
    pinned = _index(index)
    reader, (table, order) = _reader(pinned, fetch_threads=WORKERS), _work(pinned)
    for number in range(order.num_blocks):
        rows, epochs = order.block(number)
        yield len(reader.read(table, rows, epochs).images_NHWC)


def limit(folder: str) -> Iterator[int]:
    """Decoding alone, by the fastest decoder, each thread into a buffer of its own."""
    files = sorted(Path(folder).rglob("*.jpg"))

    def decode(part: list[Path]) -> int:
        buffer = np.empty((375, 500, 3), np.uint8)
        for path in part:
            simplejpeg.decode_jpeg(path.read_bytes(), "RGB", fastdct=True, fastupsample=True, buffer=buffer)
        return len(part)

    parts = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(decode, parts)


def _index(path: str) -> Index:
    storage, hash = path.rsplit("/index/", 1)
    return read_index(open_store(storage), hash, [*COLUMNS, "split"])


def _reader(index: Index, **settings: int) -> ImageReader:
    settings = {"fetch_threads": threads_for(index.source, None)} | settings
    return ImageReader(index.source, PREPROCESSING, Limits(10**8, 10**8), augment=AugmentConfig(), **settings)


def _work(index: Index, epochs: int = 1, neighbours: int = 1) -> tuple[object, TrainOrder]:
    table = index.rows("train").select(COLUMNS)
    plan = Plan(len(table), BATCH, 0, neighbours=neighbours, lying=lying(table))
    return table, TrainOrder(plan, 0, 1, 0, plan.steps(epochs), batches_per_block(BATCH))
