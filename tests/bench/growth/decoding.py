"""What one decoding task costs for an image, fetched from disk and from an object store, without Ray."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import numpy as np
import torch

from raycnn.config import AugmentConfig, load_config
from raycnn.data.decode import Limits
from raycnn.data.index import build_index
from raycnn.data.manifest import Index
from raycnn.data.reader import ImageReader
from raycnn.demo.server import ObjectServer
from raycnn.storage import open_store
from tests.bench.pictures import write_tree
from tests.bench.pipelines.ours import PREPROCESSING

IMAGES, BLOCK = 1024, 256
BUCKET = "decoding"


def measure(root: Path) -> dict[str, dict[str, float]]:
    """CPU seconds and bytes of an image from files and from an object store, and seconds of its task."""
    torch.set_num_threads(1)
    write_tree(root / "photos", IMAGES)
    found = {"files": read(indexed(str(root / "photos"), str(root / "runs")))}
    with ObjectServer(root / "objects") as server, patch.dict(os.environ, server.environment):
        server.make_bucket(BUCKET)
        upload(root / "photos", BUCKET, "photos")
        found["objects"] = read(indexed(f"s3://{BUCKET}/photos", str(root / "runs")))
    return found


def read(index: Index) -> dict[str, float]:
    """What reading the training rows costs in blocks, random views included, once all is warm."""
    table, reader = index.rows("train"), reader_of(index)
    blocks = np.array_split(np.arange(len(table)), len(table) // BLOCK)
    reader.read(table, blocks[0], blocks[0] * 0)
    wall, cpu, images = time.perf_counter(), time.process_time(), [reader.read(table, b, b * 0) for b in blocks]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert not any(any(each.reasons) for each in images)
    return {
        "cpu_s": cpu / len(table),
        "seconds": wall / len(table),
        "bytes": sum(table["length"].to_pylist()) / len(table),
        "view_bytes": images[0].images_NHWC[0].nbytes,
    }


def indexed(source: str, storage: str) -> Index:
    """The index of a source; needs a Ray, and starts one if there is none."""
    from raycnn.cluster import connect

    config = load_config({
        "run": {"name": "run", "storage": storage},
        "data": {"source": source},
        "model": {"name": "reference/lenet", "weights": "none"},
    })  # fmt: skip
    with connect():
        return build_index(config, open_store(storage), lambda done, total: None)


def reader_of(index: Index, **settings: Any) -> ImageReader:
    """Random views of 224 px."""
    return ImageReader(index.source, PREPROCESSING, Limits(10**8, 10**8), augment=AugmentConfig(), **settings)


def upload(folder: Path, bucket: str, prefix: str) -> None:
    client = boto3.client("s3")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda path: client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}"), files)
        )
