"""What the promises cost: training throughput with and without them, and how long a commit holds the loop."""

from __future__ import annotations

import hashlib
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raycnn.config import Config, load_config
from raycnn.data.dataset import Batch
from raycnn.data.keyed import derive_seed
from raycnn.data.plan import Plan
from raycnn.data.reader import ImageReader
from raycnn.demo.server import ObjectServer
from raycnn.storage import open_store
from raycnn.storage.lease import acquire, read_lease
from raycnn.training import checkpoint
from raycnn.training.badrows import BadRows
from raycnn.training.clock import Clock
from raycnn.training.feed import Feed, Task
from raycnn.training.loop import train
from raycnn.training.member import Member
from raycnn.training.optim import learning_rate
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder, Run
from raycnn.training.setup import Body, facts_of
from raycnn.training.state import TrainState
from tests.bench.command import Row
from tests.bench.group import CPU, WORLD, on_ranks, seconds
from tests.bench.pictures import write_tree

ROUNDS = 3
IMAGES = 600
CLASSES = tuple(f"{number:04}" for number in range(1500))
"""So many that EfficientNet-Lite0 has 21 MB of weights."""


def promises(root: Path) -> list[Row]:
    """EfficientNet-Lite0 from bytes to weights on two ranks, a commit with AdamW's state every 200 steps of 64."""
    write_tree(root / "photos", IMAGES)
    with ObjectServer() as server:
        os.environ.update(server.environment)
        server.make_bucket("promises")
        found = on_ranks(_compare, root, root / "photos")
    kept, bare = statistics.median(found["with"]), statistics.median(found["without"])
    held_ms = 1000 * max(found["held"])
    model_mb = found["weights"] / 1e6
    name = f"training with all promises, images/s, medians of {ROUNDS}"
    return [
        (name, f"{kept:.1f}", f"the same without {bare:.1f}", f"{kept / bare:.3f}", ">= 0.97"),
        (f"a commit of a {model_mb:.0f} MB model holds the loop, ms", f"{held_ms:.0f}", "-", "-", "<= 150"),
    ]


def config_of() -> Config:
    return load_config(
        {
            "run": {"name": "bench", "storage": "s3://promises/runs"},
            "data": {"source": "/nowhere", "image_size": 64},
            "model": {"name": "timm/tf_efficientnet_lite0", "weights": "none"},
            "train": {"epochs": 1000, "eval_every": 1000, "workers": WORLD},
        }
    )


class Reading(Feed):
    """Reads its rows itself, so that what is compared does not depend on how Ray places its tasks."""

    def batch(self, step: int) -> Batch:
        rows, epochs = self.task.plan.share(step, self._rank, self._world)
        read = self.task.reader.read(self.task.table, rows, epochs)
        assert not any(read.reasons)
        return Batch(read.images_NHWC, rows, ())


class Checking(Reading):
    """And compares the row ids with the plan, as the stream does."""

    def batch(self, step: int) -> Batch:
        found = super().batch(step)
        expected, _ = self.task.plan.share(step, self._rank, self._world)
        if not np.array_equal(found.rows, expected):
            raise RuntimeError("another order")
        return found


def rows_of(folder: Path) -> pa.Table:
    found = []
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        data = path.read_bytes()
        place = {"key": str(path.relative_to(folder)), "offset": 0, "length": len(data)}
        found.append({**place, "sha256": hashlib.sha256(data).digest(), "key_hash": number, "label": number % 2})
    return pa.Table.from_pylist(found).append_column("alias", pa.nulls(len(found), pa.string()))


def _compare(ranks: Ranks, folder: Path) -> dict[str, Any]:  # all ranks
    config = config_of()
    facts = facts_of(config, CLASSES)
    body = Body(config, facts, CPU)
    learner = body.learner(config, ranks, None)
    table = rows_of(folder)
    reader = ImageReader.of(config.data, str(folder), facts.preprocessing, augment=config.augment, seed=0)
    task = Task(Plan(len(table), config.train.global_batch, 0), table, reader, table, reader, 32, 1.0, 1)
    unverified = table.set_column(3, "sha256", pa.nulls(len(table), pa.binary()))
    kept = Checking(task, body.prefix, CPU, ranks, 10**6)
    bare = Reading(replace(task, table=unverified), body.prefix, CPU, ranks, 10**6)
    store = open_store(f"{config.run.storage}/{config.run.name}")
    lease = acquire(store, lambda record: checkpoint.newest_step(store, record)) if ranks.rank == 0 else None
    run = Run(store, config, read_lease(store), WORLD) if lease else None
    clock = Clock()
    member = Member(learner, TrainState(facts), Recorder(run), task, clock)
    bad_rows = BadRows(table, len(table), 0, 0.01)
    every = config.train.checkpoint_every
    weights = sum(tensor.nbytes for tensor in body.module.state_dict().values())
    found: dict[str, Any] = {"with": [], "without": [], "held": [], "weights": weights}

    def with_all(steps: int = every) -> None:
        train([member], kept, ranks, bad_rows, None, clock, member.state.step + steps)

    def without() -> None:
        for step in range(every):
            batch = bare.batch(step)
            inputs = bare.inputs(batch, [learner.base])[learner.base]
            labels, valid = bare.targets(batch)
            learner.enter("all")
            learner.backward(inputs, labels, valid, config.train.global_batch, step)
            for group in learner.optimizer.param_groups:
                group["lr"] = learning_rate(step, 10**6, task.plan.steps_per_epoch, config.optim)
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)

    with_all(every // 2)  # so that the commits, and what they do behind the loop, fall into the middle of a round
    sides = [("with", with_all), ("without", without)]
    for number in range(ROUNDS):
        for name, side in reversed(sides) if number % 2 else sides:
            held = clock.seconds["checkpoint"]
            taken = seconds(ranks, side)
            found[name].append(every * config.train.global_batch / taken)
            if name == "with":
                found["held"].append(clock.seconds["checkpoint"] - held)
    error = member.recorder.close()
    assert error is None, error
    if lease:
        lease.release()
    return found


def exact(root: Path) -> list[Row]:
    """train.exact against DDP: time of a step's forward, backward, exchange and update, two ranks, four shards."""
    rows = []
    for name, size in (("reference/lenet", 32), ("timm/tf_efficientnet_lite0", 96)):
        ddp, tree = on_ranks(_exact, root, name, size)
        what = f"train.exact, {name} at {size} px, global batch 64, steps/s, medians of {ROUNDS}"
        rows.append((what, f"{tree:.2f}", f"DDP {ddp:.2f}", f"{tree / ddp:.2f}", "-"))
    return rows


def _exact(ranks: Ranks, name: str, size: int) -> tuple[float, float]:  # all ranks
    tree = {"data.image_size": size, "model.name": name, "train.global_batch": 64}
    generator = torch.Generator().manual_seed(derive_seed(0, f"rank {ranks.rank}"))
    inputs = torch.randn(64 // WORLD, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    labels, valid = torch.arange(len(inputs)) % 2, torch.ones(len(inputs), dtype=torch.bool)
    sides = []
    for setting in (False, True):
        config = load_config(config_of(), {**tree, "train.exact": setting})
        learner = Body(config, facts_of(config, CLASSES), CPU).learner(config, ranks, None)
        learner.enter("all")
        sides.append(learner)
    rates: list[list[float]] = [[], []]
    steps = 100 if size < 64 else 8
    for number in range(ROUNDS + 1):
        for learner, found in zip(sides, rates, strict=True):

            def work(learner: Any = learner) -> None:
                for step in range(steps):
                    learner.backward(inputs, labels, valid, 64, step)
                    learner.step(1e-4)

            taken = seconds(ranks, work)
            if number:  # the first warms up
                found.append(steps / taken)
    return statistics.median(rates[0]), statistics.median(rates[1])
