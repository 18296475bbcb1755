"""What raycnn asks of an object store, counted behind a proxy: for an image, a commit, a beat, the start of a rank."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from raycnn.config import load_config
from raycnn.data.manifest import read_index
from raycnn.demo.server import ObjectServer
from raycnn.storage import open_store
from raycnn.storage.lease import Lease, acquire, beat, read_lease
from raycnn.training import checkpoint
from raycnn.training.recorder import Run
from raycnn.training.setup import INDEX_COLUMNS, facts_of
from raycnn.training.state import TrainState
from tests.bench.growth.decoding import indexed, reader_of, upload
from tests.bench.pictures import write_tree
from tests.faults.kit.proxy import Proxy

IMAGES, COMMITS = 128, 6
BUCKET = "growth"
_KINDS = {"HEAD": "head", "PUT": "put", "DELETE": "delete"}


@contextmanager
def counted_store(root: Path) -> Iterator[Proxy]:
    """An object store with a bucket; the AWS_* variables inside lead to it through a proxy that keeps a journal."""
    with ObjectServer(root / "objects") as server, Proxy(server.endpoint) as proxy:
        server.make_bucket(BUCKET)
        with patch.dict(os.environ, server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}):
            yield proxy


def measure(root: Path) -> dict[str, dict[str, int | float]]:
    """Requests by kind for each of the things raycnn does."""
    write_tree(root / "photos", IMAGES, width=64, height=64)
    with counted_store(root) as proxy:
        upload(root / "photos", BUCKET, "photos")
        source, storage = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/runs"
        found, index = {}, indexed(source, storage)

        def images() -> None:
            table = index.rows("train")
            rows = np.arange(len(table))
            assert not any(reader_of(index).read(table, rows, rows * 0).reasons)

        found["image"] = _each(counted(proxy, images), len(index.rows("train")))
        store = open_store(storage).child("run")
        with acquire(store, lambda record: -1, beat_s=60.0) as lease:
            commits = [counted(proxy, lambda n=n: commit(storage, lease, n)) for n in range(1, COMMITS + 1)]
            found["commit"] = dict(commits[-1])  # the first ones have less to clean up
            found["beat"] = dict(counted(proxy, lambda: beat(store, lease.owner)))
            newest = checkpoint.latest(store, read_lease(store))
            assert newest is not None

            def start() -> None:
                read_index(open_store(storage), index.hash, INDEX_COLUMNS)
                checkpoint.verified(store, newest)

            found["rank"] = dict(counted(proxy, start))
    return found


def commit(storage: str, lease: Lease, number: int) -> None:
    """As at the end of an epoch."""
    config = load_config({
        "run": {"name": "run", "storage": storage},
        "data": {"source": "/nowhere"},
        "model": {"name": "reference/lenet", "weights": "none"},
    })  # fmt: skip
    store = open_store(storage).child("run")
    state = replace(TrainState(facts_of(config, ("a", "b"))), step=number)
    files = {"weights.safetensors": os.urandom(1000), "optimizer.pt": os.urandom(1000)}
    Run(store, config, read_lease(store), 1).commit(state, lambda: files, ['{"step": 1}'], evaluated=False)


def counted(proxy: Proxy, work: Callable[[], Any]) -> Counter[str]:
    """Requests by kind while work ran."""
    before = len(proxy.journal)
    work()
    kinds = (
        "list" if record.method == "GET" and "list-type" in record.query else _KINDS.get(record.method, "get")
        for record in proxy.journal[before:]
    )
    return Counter(kinds)


def _each(requests: Counter[str], number: int) -> dict[str, float]:
    return {kind: count / number for kind, count in requests.items()}
