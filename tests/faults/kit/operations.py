"""What writes to a store, each as one call that may be killed anywhere and given again, with what must hold then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raycnn.config import Config, load_config
from raycnn.data.index import build_index
from raycnn.data.manifest import read_index
from raycnn.data.reader import ImageReader
from raycnn.errors import ObjectNotFound, RunBusyError
from raycnn.results import parts
from raycnn.results.inference import Scored, read_classifier
from raycnn.results.predict import predict
from raycnn.searching import records
from raycnn.searching.board import Board, Stage
from raycnn.searching.settings import pin
from raycnn.storage import Store, lease, open_store
from raycnn.storage.lease import LeaseRecord, acquire, adopt, begin_group, read_lease
from raycnn.training import checkpoint
from raycnn.training.commit import Commit
from raycnn.training.metrics_log import decode_lines
from raycnn.training.recorder import Run
from raycnn.training.run import create_run
from raycnn.training.setup import facts_of
from raycnn.training.start import first_commit
from raycnn.training.state import TrainState

CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Operation:
    """One call, and its invariants. Every function takes the uri of the run's folder and that of six images.

    prepare: what was there before; act: the call; holds: asserts what is so at every moment; done: what is so when
    the call, given again, has ended; again: whether it may follow itself in the same folder.
    """

    prepare: Callable[[str, str], None]
    act: Callable[[str, str], None]
    holds: Callable[[str, str], None]
    done: Callable[[str, str], None]
    again: bool = False


def config_of(uri: str, source: str) -> Config:
    """A run on the six images."""
    storage, _, name = uri.rpartition("/")
    tree = {
        "run": {"name": name, "storage": storage},
        "data": {"source": source, "val_fraction": 0.34, "test_fraction": 0.0, "stratify": True},
        "model": {"name": "reference/lenet", "weights": "none"},
        "train": {"global_batch": 2, "chunk": 2, "keep": 2, "metric": "loss"},
        "predict": {"source": source, "step": "latest"},
        "search": {"space": {"optim.lr": {"grid": [0.1, 0.2]}}},
    }
    return load_config(tree)


def newest_step(uri: str) -> Callable[[LeaseRecord], int]:
    return lambda record: checkpoint.newest_step(open_store(uri), record)


def intact(uri: str) -> Commit:
    """P6: the newest commit that the lease believes; its files verify."""
    store = open_store(uri)
    newest = checkpoint.latest(store, read_lease(store))
    assert newest is not None
    assert checkpoint.verified(store, newest)
    return newest


# a commit, as the training loop makes it: files, manifest, metrics.jsonl, events, prune


def commit_step(uri: str, source: str, step: int) -> None:
    store, config = open_store(uri), config_of(uri, source)
    record = adopt(store, "me", newest_step(uri))
    run = Run(store, config, record, 1)
    if newest := checkpoint.latest(store, record):
        run.shown.update(
            decode_lines(checkpoint.verified(store, newest)["metrics.jsonl"]), newest.step
        )  # as a start does
    state = TrainState(facts_of(config, CLASSES), step).evaluated({"loss": float(step)})
    files = {"weights.safetensors": b"weights %d" % step, "optimizer.pt": b"optimizer %d" % step}
    line = json.dumps({"step": step, "loss": 1.0})
    run.commit(state, lambda: files, [line], evaluated=True)


def commit_three(uri: str, source: str) -> None:
    for step in (10, 20, 30):
        commit_step(uri, source, step)


def commit_next(uri: str, source: str) -> None:
    commit_step(uri, source, intact(uri).step + 10)


def a_commit_is_there(uri: str, source: str) -> None:
    assert intact(uri).step >= 30


def the_old_ones_went(uri: str, source: str) -> None:
    newest = intact(uri)
    assert newest.step >= 40
    found = [commit.step for commit in checkpoint.commits(open_store(uri), None)]
    assert found == [newest.step, newest.step - 10, 10]  # the best is the first
    folders = {entry.key.split("/")[1] for entry in open_store(uri).list("checkpoints/")}
    assert len(folders) == 3
    lines = [json.loads(line)["step"] for line in open_store(uri).get("metrics.jsonl").splitlines()]
    assert lines == list(range(10, newest.step + 1, 10))


# a lease: taken, two worker groups with a commit each, given back


def nothing(uri: str, source: str) -> None:
    pass


def lease_life(uri: str, source: str) -> None:
    store, newest = open_store(uri), newest_step(uri)
    with mock.patch.object(lease, "_KEEPER", ("sh", "-c", "cat")):  # it starts in no time and never beats
        held = acquire(store, newest, ttl_s=0.2)
        for _ in range(2):
            group = begin_group(store, held.owner, newest)
            step = max(group.bases[group.epoch], 0) + 10
            checkpoint.write(store, step, group.epoch, {"weights": b"%d" % step}, {}, guard=held.check)
        held.release()


def the_next_fences(uri: str, source: str) -> None:
    """P7: whoever takes over believes all that was committed, and nothing that a writer of before commits later."""
    store = open_store(uri)
    before = read_lease(store)
    newest = checkpoint.newest_step(store, before)
    with mock.patch.object(lease, "_KEEPER", ("sh", "-c", "cat")), acquire(store, newest_step(uri), ttl_s=0.2) as held:
        assert held.epoch == before.epoch + 1
        record = read_lease(store)
        assert record.bases[held.epoch] == newest == checkpoint.newest_step(store, record)
        if before.epoch:
            checkpoint.write(store, 99, before.epoch, {"weights": b"late"}, {}, guard=lambda: None)
            assert checkpoint.newest_step(store, record) == newest
            if before.owner:
                try:
                    lease.check(store, before.owner, before.epoch)
                except RunBusyError:
                    pass
                else:
                    raise AssertionError("the writer of before may still write")


def released(uri: str, source: str) -> None:
    assert read_lease(open_store(uri)).released
    assert intact(uri).step >= 20


# an index


def index_images(uri: str, source: str) -> None:
    build_index(config_of(uri, source), open_store(uri), lambda done, total: None)


def every_index_reads(uri: str, source: str) -> None:
    store = open_store(uri)
    for hash in store.folders("index"):
        try:
            store.stat(f"index/{hash}/index.json")
        except ObjectNotFound:
            continue
        assert len(read_index(store, hash).manifest) == 6


def one_index(uri: str, source: str) -> None:
    every_index_reads(uri, source)
    assert len(open_store(uri).folders("index")) == 1
    assert len(list(open_store(uri).list("index/"))) == 3


# a search's records, as the driver keeps them


def search_two(uri: str, source: str) -> None:
    store, config = open_store(uri), config_of(uri, source)
    pin(store, config)
    stage = Stage("search", range(2), lambda number, _: {"optim.lr": (0.1, 0.2)[number]}, lambda values: 1.0)
    board = Board(store, config, "min", stage, ["pack"], records.read_all(store), lambda config: None)
    while trial := board.next():
        metrics = {"loss": trial["values"]["optim.lr"]}
        for step in (2, 4):
            status = "finished" if step == 4 else None
            outcome = {
                "step": step,
                "epochs": step / 2,
                "metrics": metrics,
                "seconds": 1.0,
                "status": status,
                "error": None,
            }
            board.reported(trial["id"], trial["values"], outcome)
        board.ended(trial["id"], "")


def records_read(uri: str, source: str) -> None:
    for number, record in enumerate(records.read_all(open_store(uri))):
        assert record.id == f"{number:04d}"
        assert record.values == {"optim.lr": (0.1, 0.2)[number]}
        assert record.status == ("finished" if len(record.evaluations) == 2 else "running")


def both_finished(uri: str, source: str) -> None:
    records_read(uri, source)
    assert [record.status for record in records.read_all(open_store(uri))] == ["finished"] * 2


# predictions, three parts


def train_nothing(uri: str, source: str) -> None:
    store, config = open_store(uri), config_of(uri, source)
    create_run(config, store, "none", CLASSES)
    first_commit(config, store, adopt(store, "me", newest_step(uri)), facts_of(config, CLASSES), lambda line: None)


def infer_here(
    config: Config, store: Store, commit: Commit, source: str, table: pa.Table, start: int = 0, tta: str = "none"
) -> Iterator[Scored]:
    """As raycnn.results.inference.infer, without Ray and with one view: two rows at a time."""
    assert tta == "none"
    network = read_classifier(store, commit, "float32", torch.device("cpu"))
    reader = ImageReader.of(config.data, source, network.preprocessing)
    for first in range(start, len(table), 2):
        rows = np.arange(first, min(first + 2, len(table)))
        read = reader.read(table, rows, np.zeros(len(rows), np.int64))
        yield Scored(rows, network.logits(read.images_NHWC), np.array(read.reasons))


def predict_images(uri: str, source: str) -> None:
    with mock.patch.object(parts, "_PART_S", 0.0), mock.patch("raycnn.results.predict.infer", infer_here):
        predict(config_of(uri, source))


def whole_or_absent(uri: str, source: str) -> None:
    for entry in open_store(uri).list("predictions/"):
        if ".parts/" not in entry.key:
            table = pq.read_table(pa.BufferReader(open_store(uri).get(entry.key)))
            assert len(table) == 6
            assert table["reason"].null_count == 6


def one_file(uri: str, source: str) -> None:
    whole_or_absent(uri, source)
    assert len(list(open_store(uri).list("predictions/"))) == 1


# a large file, in parts


def put_large(uri: str, source: str) -> None:
    path = Path(source) / "../large.bin"
    with mock.patch("raycnn.storage.s3._PART_BYTES", 5 * 2**20):
        open_store(uri).put_file("large", path)


def large_or_absent(uri: str, source: str) -> None:
    for entry in open_store(uri).list("large"):
        assert entry.size == 11 * 2**20


def large_is_there(uri: str, source: str) -> None:
    assert [entry.size for entry in open_store(uri).list("large")] == [11 * 2**20]


OPERATIONS = {
    "commit": Operation(commit_three, commit_next, a_commit_is_there, the_old_ones_went, again=True),
    "lease": Operation(nothing, lease_life, the_next_fences, released),
    "index": Operation(nothing, index_images, every_index_reads, one_index),
    "search": Operation(nothing, search_two, records_read, both_finished),
    "predict": Operation(train_nothing, predict_images, whole_or_absent, one_file),
    "large": Operation(nothing, put_large, large_or_absent, large_is_there),
}


def moments(count: int) -> list[tuple[int, bool]]:
    """(request, late): before each of `count` requests, which is after the one before it, and after the last."""
    return [*((number, False) for number in range(1, count + 1)), (count, True)]
