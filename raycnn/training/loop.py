"""The training loop, as every rank runs it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch

from raycnn.data.dataset import Batch, TrainOrder, stream
from raycnn.data.keyed import derive_seed
from raycnn.data.plan import Plan
from raycnn.data.reader import PADDING, ImageReader
from raycnn.errors import DivergedError, RaycnnError
from raycnn.training.badrows import BadRows
from raycnn.training.device import to_device
from raycnn.training.due import due, evaluation_due
from raycnn.training.learner import Learner
from raycnn.training.monitor import Reporter
from raycnn.training.optim import learning_rate
from raycnn.training.phases import depth_at
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder
from raycnn.training.state import TrainState
from raycnn.training.validation import Validation


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start


@dataclass(frozen=True)
class Task:
    """What a worker group trains: the same on every rank."""

    plan: Plan
    table: pa.Table
    reader: ImageReader
    task_cpus: float
    steps_per_block: int


def train(
    learner: Learner, task: Task, state: TrainState, ranks: Ranks, recorder: Recorder, validation: Validation,
    bad_rows: BadRows, reporter: Reporter | None, clock: Clock,
) -> tuple[str, TrainState]:  # fmt: skip
    """Train from `state` to the end of the run.

    Returns:
        (status, state): finished, stopped_early or preempted; everything up to state.step is committed.

    Raises:
        RaycnnError: the same on every rank.
    """
    config, plan = learner.config, task.plan
    total = plan.steps(config.train.epochs)
    labels = task.table["label"].to_numpy()
    order = TrainOrder(plan, ranks.rank, ranks.world, state.step, total, task.steps_per_block)
    batches = stream(task.reader, task.table, order, task_cpus=task.task_cpus)

    while (status := state.status(config.train, plan)) is None:
        step = state.step
        with clock("data"):
            batch, error = next_batch(batches)
        error = error or recorder.failure()
        agreed = ranks.agree(
            int((batch.rows != PADDING).sum()), leaving=reporter is not None and reporter.leaving,
            failed=error is not None, bad_rows=len(batch.failures),
        )  # fmt: skip
        if agreed.failed:
            ranks.raise_first(error)
        if agreed.bad_rows:
            state = bad_rows.count(state, [failure for found in ranks.gather(batch.failures) for failure in found])
        if agreed.leaving:
            status = "preempted"
            break

        with clock("compute"):
            learner.enter(depth_at(step, config.model.unfreeze, plan))
            torch.manual_seed(derive_seed(config.train.seed, f"step {step} rank {ranks.rank}"))
            valid = torch.from_numpy(batch.rows != PADDING).to(learner.device)
            targets = torch.from_numpy(labels[np.maximum(batch.rows, 0)].astype(np.int64)).to(learner.device)
            loss_sum = learner.backward(to_device(batch.images_NHWC, learner.device), targets, valid, agreed.count)
            lr = learning_rate(step, total, plan.steps_per_epoch, config.optim)
            norm = learner.step(lr)
        if norm - norm != 0 and not learner.skips_overflows():
            raise diverged(step, lr, task)
        state = replace(state, step=step + 1)

        if due(state.step, config.train.log_every, total):
            (total_loss,) = ranks.sum([float(loss_sum)])
            loss = total_loss / agreed.count if agreed.count else None
            recorder.line(state, lr=lr, loss=loss, gradient_norm=norm, seconds=dict(clock.seconds))
            if reporter:
                reporter.progress(loss=loss)
        evaluated = evaluation_due(state.step, config.train.eval_every, plan, total)
        if evaluated:
            with clock("evaluate"):
                state = state.evaluated(validation.metrics(learner, ranks))
            metrics = state.evaluations[-1]["metrics"]
            recorder.line(state, **{f"val_{name}": value for name, value in metrics.items()})
            if reporter:
                reporter.progress(**{f"val {config.train.metric}": metrics[config.train.metric]})
        if evaluated or due(state.step, config.train.checkpoint_every, total):
            with clock("checkpoint"):
                recorder.commit(learner, state, evaluated)
        if reporter:
            reporter.progress(step=state.step, seconds=dict(clock.seconds))

    with clock("checkpoint"):
        if status == "preempted":
            recorder.commit(learner, state, evaluated=False)
        ranks.raise_first(recorder.close())
    return status, state


def next_batch(batches: Iterator[Batch]) -> tuple[Batch, RaycnnError | None]:
    """The next batch, or an empty one and the error that kept it away, which the ranks then agree on."""
    try:
        return next(batches), None
    except RaycnnError as error:
        return Batch(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64), ()), error


def diverged(step: int, lr: float, task: Task) -> DivergedError:
    """What to say of a gradient that is not finite; the weights have not seen it."""
    rows, _ = task.plan.share(step)
    keys = task.table["key"].take(pa.array(rows[:8])).to_pylist()
    return DivergedError(
        f"the gradient is NaN or Inf at step {step}, learning rate {lr:.3g}, images {', '.join(keys)}, ...",
        where="optim.lr",
        fix="lower optim.lr, lengthen optim.warmup_epochs or set optim.clip_norm, under a new run.name",
    )
