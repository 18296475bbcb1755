"""Rank 0's pen: lines of metrics, commits in the background, and what the run's folder shows of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from raycnn.config import Config, identity_hash
from raycnn.errors import RaycnnError
from raycnn.storage import Store
from raycnn.storage.lease import LeaseRecord, check
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit
from raycnn.training.committer import Committer
from raycnn.training.learner import Learner
from raycnn.training.metrics import metric_mode
from raycnn.training.metrics_log import encode_lines
from raycnn.training.serialize import encode_optimizer, encode_weights
from raycnn.training.shown import Shown
from raycnn.training.state import TrainState
from raycnn.version import versions

Files = dict[str, bytes]


@dataclass(frozen=True)
class Run:
    """A run's folder, as the holder of its lease writes to it."""

    store: Store
    config: Config
    record: LeaseRecord
    world: int

    @cached_property
    def shown(self) -> Shown:
        """metrics.jsonl and events/, as they follow from the commits."""
        return Shown(self.store)

    def commit(self, state: TrainState, files: Callable[[], Files], lines: list[str], evaluated: bool) -> Commit:
        """Commit a state; then metrics.jsonl, events/ and the clean-up that follow from it."""
        config, record = self.config, self.record
        facts = {
            "samples_seen": state.step * config.train.global_batch,
            "identity": identity_hash(config),
            "world_size": self.world,
            "versions": versions(),
            "metrics": state.evaluations[-1]["metrics"] if evaluated else None,
        }
        if evaluated and state.calibration is not None:
            facts["calibration"] = asdict(state.calibration)
        contents = {**files(), "state.json": state.encode(), "metrics.jsonl": encode_lines(lines)}

        def guard() -> None:
            check(self.store, record.owner, record.epoch)

        commit = checkpoint.write(self.store, state.step, record.epoch, contents, facts, guard=guard)
        guard()  # whoever slept until now and was fenced out meanwhile must not prune the new owner's commits
        self.shown.update(lines, state.step)
        kept = checkpoint.commits(self.store, record)
        best = checkpoint.best(kept, config.train.metric, metric_mode(config.train.metric))
        checkpoint.prune(self.store, record, config.train.keep, best)
        return commit


@dataclass
class Recorder:
    """What rank 0 records; on the other ranks nothing happens.

    Args:
        run: where to; None on the other ranks.
    """

    run: Run | None
    last: Commit | None = None
    _lines: list[str] = field(default_factory=list)
    _committer: Committer = field(default_factory=Committer)
    _committed_step: int = -1

    def line(self, state: TrainState, **values: Any) -> None:
        """One line of metrics.jsonl, part of the next commit."""
        if self.run:
            samples = state.step * self.run.config.train.global_batch
            self._lines.append(
                json.dumps({"step": state.step, "samples": samples, **values, "time": round(time.time(), 3)})
            )

    def commit(self, learner: Learner, state: TrainState, evaluated: bool) -> None:
        """Commit the state in the background; waits only for the commit before, and for the copy."""
        if self.run is None or state.step == self._committed_step:
            return
        run, lines, self._lines = self.run, self._lines, []
        self._committed_step = state.step
        weights, optimizer = learner.snapshot()

        def files() -> Files:
            return {
                "weights.safetensors": encode_weights(weights),
                "optimizer.pt": encode_optimizer(optimizer),
            }

        self._committer.submit(lambda: run.commit(state, files, lines, evaluated))

    def failure(self) -> RaycnnError | None:
        """Why the last commit failed, if it did."""
        return self._committer.failure

    def close(self) -> RaycnnError | None:
        """Wait for the commit in flight; returns why it failed, if it did."""
        try:
            self.last = self._committer.wait()
        except RaycnnError as error:
            return error
        return None
