"""Load: many objects, many checkpoints, many jobs. What it costs may not grow with how much there was before."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raycnn.config import Config, load_config
from raycnn.storage import Store, open_store
from raycnn.storage.base import Entry
from raycnn.storage.lease import acquire, read_lease
from raycnn.training import checkpoint
from raycnn.training.recorder import Run
from raycnn.training.setup import facts_of
from raycnn.training.shown import read_lines
from raycnn.training.state import TrainState
from tests.bench import command
from tests.bench.pictures import write_tree

CHECKPOINTS = 200
LINES = 50
JOBS, COMMITS = 8, 8
OBJECTS = 100_000


@dataclass
class Counting:
    """A store that counts requests by kind, and the objects that listings bring."""

    store: Store
    requests: Counter[str] = field(default_factory=Counter)

    @property
    def uri(self) -> str:
        return self.store.uri

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.requests["get"] += 1
        return self.store.get(key, offset, length)

    def stat(self, key: str) -> Entry:
        self.requests["stat"] += 1
        return self.store.stat(key)

    def folders(self, prefix: str = "") -> list[str]:
        self.requests["folders"] += 1
        return self.store.folders(prefix)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        self.requests["list"] += 1
        for entry in self.store.list(prefix):
            self.requests["listed"] += 1
            yield entry

    def put(self, key: str, data: bytes, **options: Any) -> str:
        self.requests["put"] += 1
        return self.store.put(key, data, **options)

    def put_file(self, key: str, path: Path, **options: Any) -> str:
        self.requests["put"] += 1
        return self.store.put_file(key, path, **options)

    def delete(self, keys: Iterable[str]) -> None:
        keys = [*keys]
        self.requests["deleted"] += len(keys)
        self.store.delete(keys)

    def child(self, path: str) -> Store:
        return self.store.child(path)


def config_of(bucket: str, name: str) -> Config:
    return load_config(
        {
            "run": {"name": name, "storage": f"s3://{bucket}/runs"},
            "data": {"source": "/nowhere"},
            "model": {"name": "reference/lenet", "weights": "none"},
        }
    )


def lines_of(first: int, last: int) -> list[str]:
    """As long as those of training."""
    seconds = {"start": 1.234, "data": 22.123456789, "prefix": 1.123456789, "compute": 33.123456789}
    return [
        json.dumps({"step": step, "samples": 64 * step, "lr": 1e-3, "loss": 1 / step, "seconds": seconds, "time": 1.0})
        for step in range(first, last + 1)
    ]


def commit(run: Run, state: TrainState, size: int) -> None:
    """One commit of `size` bytes that logged LINES steps."""
    files = {"weights.safetensors": os.urandom(size), "optimizer.pt": os.urandom(2 * size)}
    run.commit(state, lambda: files, lines_of(state.step - LINES + 1, state.step), evaluated=False)


def test_200_checkpoints_cost_as_much_each_as_the_first_ones(bucket: str) -> None:
    config = config_of(bucket, "many")
    plain = open_store(f"s3://{bucket}/runs/many")
    requests, seconds = [], []
    with acquire(plain, lambda record: checkpoint.newest_step(plain, record)):
        store = Counting(plain)
        run = Run(store, config, read_lease(plain), 1)
        state = TrainState(facts_of(config, ("a", "b")))
        for number in range(1, CHECKPOINTS + 1):
            store.requests.clear()
            start = time.thread_time()
            commit(run, replace(state, step=number * LINES), 50_000)
            seconds.append(time.thread_time() - start)
            requests.append(dict(store.requests))
    assert requests[10] == requests[-1]
    assert all(each == requests[10] for each in requests[10:])
    assert requests[-1]["listed"] <= 40
    early, late = statistics.median(seconds[10:40]), statistics.median(seconds[-30:])
    assert late < 2 * early, (early, late)
    assert len(read_lines(plain)) == CHECKPOINTS * LINES
    assert len(list(plain.list())) < 20
    newest = checkpoint.latest(plain, read_lease(plain))
    assert newest is not None
    assert newest.step == CHECKPOINTS * LINES


def one_job(uri: str, name: str, commits: int) -> int:
    """A job's commits; how many of them `latest` then gave back verified."""
    config = config_of(uri.split("/")[2], name)
    store = open_store(f"{uri}/runs/{name}")
    verified = 0
    with acquire(store, lambda record: checkpoint.newest_step(store, record)) as lease:
        run = Run(store, config, read_lease(store), 1)
        state = TrainState(facts_of(config, ("a", "b")))
        for number in range(1, commits + 1):
            commit(run, replace(state, step=number * LINES), 300_000)
            lease.check()
            newest = checkpoint.latest(store, read_lease(store))
            verified += newest is not None and newest.step == number * LINES
    return verified


def test_8_jobs_at_once_each_keep_their_commits(bucket: str) -> None:
    with multiprocessing.get_context("spawn").Pool(JOBS) as pool:
        jobs = [(f"s3://{bucket}", f"job-{number}", COMMITS) for number in range(JOBS)]
        assert pool.starmap(one_job, jobs) == [COMMITS] * JOBS
    storage = open_store(f"s3://{bucket}/runs")
    assert len(storage.folders()) == JOBS
    for name in storage.folders():
        files = [entry.key for entry in storage.child(name).list("checkpoints/")]
        assert len({key.split("/")[1] for key in files}) == 2


def test_100_000_objects_indexed_and_trained_take_the_memory_of_10_000(tmp_path: Path) -> None:
    peaks = {}
    for count in (OBJECTS // 10, OBJECTS):
        write_tree(tmp_path / f"images-{count}", count, width=32, height=32, quality=70)
        runs = tmp_path / f"runs-{count}"
        config = command.config_of(tmp_path / f"images-{count}", runs, **{"train.global_batch": 512})
        peaks[count] = command.watched(config, tmp_path)
        (last,) = open_store(str(runs / "bench")).get("metrics.jsonl").splitlines()[-1:]
        assert json.loads(last)["samples"] >= 0.75 * count
    few, many = peaks.values()
    print(f"MB with {OBJECTS // 10} and {OBJECTS} objects: {few} {many}")
    assert many["rank"] <= 1.1 * few["rank"]
    assert many["decoder"] <= 1.1 * few["decoder"]
    # the driver holds the manifest, some hundred bytes a row, and while it indexes each row's verdict
    assert many["driver"] - few["driver"] <= 0.9 * OBJECTS * 1500 / 2**20
