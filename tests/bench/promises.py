"""What the promises cost: training throughput with and without them, and how long a commit holds the loop."""

from __future__ import annotations

import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raycnn.config import load_config
from raycnn.data.dataset import Batch
from raycnn.data.keyed import derive_seed
from raycnn.demo.server import ObjectServer
from raycnn.storage import open_store
from raycnn.storage.lease import acquire, read_lease
from raycnn.training import checkpoint
from raycnn.training.feed import Feed
from raycnn.training.loop import conclude_epoch, report
from raycnn.training.monitor import Reporter
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Run
from raycnn.training.schedule import learning_rate
from raycnn.training.setup import Body, facts_of
from raycnn.training.verdict import EpochTimes
from tests.bench.command import Row
from tests.bench.group import CPU, WORLD, on_ranks, seconds
from tests.bench.loops import Loop, Reading, config_of
from tests.bench.pictures import write_tree

ROUNDS = 3
IMAGES = 600
CLASSES = tuple(f"{number:04}" for number in range(1500))
"""So many that EfficientNet-Lite0 has 21 MB of weights."""
EPOCH_S = 60


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
    told_ms = 1000 * max(found["told"])
    percent = (held_ms + told_ms) / (10 * EPOCH_S)
    name = f"training with all promises, images/s, medians of {ROUNDS}"
    parts = f"{held_ms:.0f} ms and {told_ms:.0f} ms"
    return [
        (name, f"{kept:.1f}", f"the same without {bare:.1f}", f"{kept / bare:.3f}", ">= 0.97"),
        (f"a commit of a {model_mb:.0f} MB model holds the loop, ms", f"{held_ms:.0f}", "-", "-", "<= 150"),
        (f"checkpoint and report, % of an epoch of {EPOCH_S} s", parts, "-", f"{percent:.2f}", "<= 2"),
    ]


class Checking(Reading):
    """And compares the row ids with the plan, as the stream does."""

    def batch(self, step: int) -> Batch:
        found = super().batch(step)
        expected, _ = self.task.plan.share(step, self._rank, self._world)
        if not np.array_equal(found.rows, expected):
            raise RuntimeError("another order")
        return found


def _compare(ranks: Ranks, folder: Path) -> dict[str, Any]:  # all ranks
    config = config_of(**{"run.storage": "s3://promises/runs"})
    store = open_store(f"{config.run.storage}/{config.run.name}")
    lease = acquire(store, lambda record: checkpoint.newest_step(store, record)) if ranks.rank == 0 else None
    run = Run(store, config, read_lease(store), WORLD) if lease else None
    loop = Loop(config, CLASSES, folder, ranks, run)
    kept = loop.feed(Checking)
    unverified = loop.table.set_column(3, "sha256", pa.nulls(len(loop.table), pa.binary()))
    bare = loop.feed(Reading, replace(loop.task, table=unverified))
    every = config.train.checkpoint_every
    weights = sum(tensor.nbytes for tensor in loop.body.module.state_dict().values())
    found: dict[str, Any] = {"with": [], "without": [], "held": [], "weights": weights}
    loop.run(kept, every // 2)  # so that the commits, and what they do behind the loop, fall into a round's middle
    sides = [("with", lambda: loop.run(kept, every)), ("without", lambda: _without(loop, bare, every))]
    for number in range(ROUNDS):
        for name, side in reversed(sides) if number % 2 else sides:
            held = loop.clock.seconds["checkpoint"]
            taken = seconds(ranks, side)
            found[name].append(every * config.train.global_batch / taken)
            if name == "with":
                found["held"].append(loop.clock.seconds["checkpoint"] - held)
    found["told"] = [seconds(ranks, lambda: _tell(loop)) for _ in range(ROUNDS)]
    error = loop.member.recorder.close()
    assert error is None, error
    if lease:
        lease.release()
    return found


def _without(loop: Loop, feed: Feed, steps: int) -> None:
    """The same steps by the bare means of torch."""
    learner, config = loop.learner, loop.config
    for step in range(steps):
        batch = feed.batch(step)
        inputs = feed.inputs(batch, [learner.base])[learner.base]
        labels, valid = feed.targets(batch)
        learner.enter("all")
        learner.backward(inputs, labels, valid, config.train.global_batch, step)
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate(step, 10**6, loop.task.plan.steps_per_epoch, config.optim)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)


def _tell(loop: Loop) -> None:  # all ranks
    """What is said of an epoch: a line of its metrics, a line of its times, the driver's progress."""
    member = loop.member
    reporter = Reporter(None, every_s=10**6)  # a thread of its own sends, so the loop does not wait for whom it is for
    member.evaluated({"loss": 1.0, "accuracy": 0.5})
    conclude_epoch(member, EpochTimes(loop.clock), loop.ranks, reporter)
    report(reporter, member, loop.clock, evaluated=True)


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
