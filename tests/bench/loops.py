"""The real training loop in the bench's own processes, for ratios of what feeds it and of what it does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pyarrow as pa

from raycnn.config import Config, load_config
from raycnn.data.dataset import Batch, batches_per_block
from raycnn.data.plan import Plan
from raycnn.data.reader import ImageReader
from raycnn.training.badrows import BadRows
from raycnn.training.clock import Clock
from raycnn.training.feed import Feed, Task
from raycnn.training.loop import train
from raycnn.training.member import Member
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder, Run
from raycnn.training.setup import Body, facts_of
from raycnn.training.state import TrainState
from tests.bench.group import CPU, WORLD

ENDLESS = 10**6
"""Steps that a feed could go on for."""


def config_of(**changes: Any) -> Config:
    """EfficientNet-Lite0 from random weights, by dotted paths; it evaluates never."""
    tree = {
        "run": {"name": "bench", "storage": "/nowhere"},
        "data": {"source": "/nowhere", "image_size": 64},
        "model": {"name": "timm/tf_efficientnet_lite0", "weights": "none"},
        "train": {"epochs": 1000, "eval_every": 1000, "workers": WORLD},
    }
    return load_config(tree, changes)


class Loop:
    """One rank's training loop with all it needs, as a worker sets it up.

    Args:
        config: of the fit.
        classes: of the network; the rows have the first two.
        folder: of the images.
        ranks: that train together.
        run: where rank 0 commits to, if anywhere.
        task_cpus: Ray CPUs of one decoding task, for feeds that read through Ray.
    """

    def __init__(
        self, config: Config, classes: tuple[str, ...], folder: Path, ranks: Ranks, run: Run | None = None,
        task_cpus: float = 1.0,
    ) -> None:  # fmt: skip
        self.config, self.ranks, self.clock = config, ranks, Clock()
        facts, batch = facts_of(config, classes), config.train.global_batch
        self.table = rows_of(folder)
        reader = ImageReader.of(config.data, str(folder), facts.preprocessing, augment=config.augment, seed=0)
        plan, steps = Plan(len(self.table), batch, 0), batches_per_block(batch // ranks.world)
        self.task = Task(plan, self.table, reader, self.table, reader, config.train.chunk, task_cpus, steps)
        self.body = Body(config, facts, CPU)
        self.learner = self.body.learner(config, ranks, None)
        self.member = Member(self.learner, TrainState(facts), Recorder(run), self.task, self.clock)
        self._bad_rows = BadRows(self.table, len(self.table), 0, 0.01)

    def feed(self, kind: type[Feed], task: Task | None = None) -> Feed:
        return kind(task or self.task, self.body.prefix, CPU, self.ranks, ENDLESS)

    def run(self, feed: Feed, steps: int) -> None:  # all ranks
        until = self.member.state.step + steps
        train([self.member], feed, self.ranks, self._bad_rows, None, self.clock, until)
        assert self.member.state.step == until, self.member.error


class Streaming(Feed):
    """Can be ended before its Ray is; threads that still read ahead while Ray ends would abort the process."""

    def close(self) -> None:
        if isinstance(self._batches, Generator):
            self._batches.close()
        for thread in threading.enumerate():
            if thread.name.startswith(("iter_threaded", "StreamingExecutor")):
                thread.join(timeout=30)


class Reading(Feed):
    """Reads its rows itself, so that what is compared does not depend on how Ray places its tasks."""

    def batch(self, step: int) -> Batch:
        rows, epochs = self.task.plan.share(step, self._rank, self._world)
        read = self.task.reader.read(self.task.table, rows, epochs)
        assert not any(read.reasons)
        return Batch(read.images_NHWC, rows, ())


class Held(Reading):
    """Has its batches in memory."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._held: dict[int, Batch] = {}

    def hold(self, steps: range) -> None:
        """Read these steps now, and forget all others."""
        self._held = {step: super(Held, self).batch(step) for step in steps}

    def batch(self, step: int) -> Batch:
        return self._held[step]


def rows_of(folder: Path) -> pa.Table:
    """The rows that an index of the images would have."""
    found = []
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        data = path.read_bytes()
        place = {"key": str(path.relative_to(folder)), "offset": 0, "length": len(data)}
        found.append({**place, "sha256": hashlib.sha256(data).digest(), "key_hash": number, "label": number % 2})
    return pa.Table.from_pylist(found).append_column("alias", pa.nulls(len(found), pa.string()))
