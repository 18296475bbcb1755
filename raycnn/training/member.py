"""One fit among those that go through the same steps together: its learner, its progress, its pen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from raycnn.config.given import PYTHON
from raycnn.errors import DivergedError, RaycnnError
from raycnn.training.calibration import Calibration
from raycnn.training.clock import Clock
from raycnn.training.due import due, evaluation_due
from raycnn.training.feed import Task
from raycnn.training.learner import Learner
from raycnn.training.losses import Targets
from raycnn.training.metrics import metric_mode
from raycnn.training.phases import depth_at
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder
from raycnn.training.schedule import batch_factor, learning_rate, momentum, plateau_drops
from raycnn.training.state import TrainState


class Member:
    """A fit; it has ended when it has a status or an error.

    Args:
        learner: restored to `state`.
        state: where it stands.
        recorder: of its folder.
        task: what it trains on, common to all that share the steps.
        clock: of the time that it costs.
        alone: whether any exception of its own ends it alone, not its process.

    Attributes:
        status: finished or stopped_early; None while it goes on.
        error: why it failed.
        loss: mean training loss of its last logged step.
    """

    def __init__(
        self, learner: Learner, state: TrainState, recorder: Recorder, task: Task, clock: Clock, *, alone: bool = False
    ) -> None:
        self.learner, self.state, self.recorder, self.clock = learner, state, recorder, clock
        self._task, self._plan, self._alone = task, task.plan, alone
        self.config = learner.config
        if state.micro_batch:
            learner.micro_batch.rows = state.micro_batch
        self.total = self._plan.steps(self.config.train.epochs)
        self.status = state.status(self.config.train, self._plan)
        self.error: RaycnnError | None = None
        self.loss: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has nothing more to do."""
        return self.status is not None or self.error is not None

    @contextmanager
    def failing_alone(self) -> Iterator[None]:
        """Inside, its failure becomes its `error`; the same on every rank."""
        try:
            yield
        except RaycnnError as error:
            self.error = error
        except Exception as error:
            if not self._alone:
                raise
            self.error = RaycnnError(f"{type(error).__name__}: {error}", where=f"step {self.state.step}")

    def step(self, inputs: Tensor, targets: Targets, valid: Tensor, count: float, ranks: Ranks) -> None:  # all ranks
        """Train one step.

        Args:
            inputs: of the suffix at the learner's base depth.
            targets: int64[N] classes, or two for each row.
            valid: bool[N], rows that count.
            count: rows that count over all ranks.

        Raises:
            DivergedError: the gradient is not finite; the weights have not seen it.
        """
        step, config, learner = self.state.step, self.config, self.learner
        with self.clock("compute"):
            learner.enter(depth_at(step, learner.unfreeze, self._plan))
            losses = learner.backward(inputs, targets, valid, count, step)
            lr, beta = self._rates(step)
            terms = self._terms(step)
            norm = learner.step(lr, beta)
        if norm - norm != 0 and not learner.skips_overflows():
            keys = ", ".join(self._task.keys(step, 8))
            loss = f"see whether {config.loss.name} is finite, " if config.loss.name.startswith(PYTHON) else ""
            raise DivergedError(
                f"the gradient is NaN or Inf at step {step}, learning rate {lr:.3g}, images {keys}, ...",
                where="optim.lr",
                fix=f"{loss}lower optim.lr, lengthen optim.warmup_epochs or set optim.clip_norm, under a new run.name",
            )
        learner.average(step)
        found = learner.micro_batch
        self.state = replace(self.state, step=step + 1, micro_batch=found.rows if found.automatic else None)
        if due(self.state.step, config.train.log_every, self.total):
            total_loss = math.fsum(loss for found in ranks.gather(losses.tolist()) for loss in found)
            self.loss = total_loss / count if count else None
            self.line(lr=lr, loss=self.loss, gradient_norm=norm, **terms)

    def _terms(self, step: int) -> dict[str, float]:
        """What of the loss does not depend on the images, if there is any and the step is logged."""
        loss, logged = self.config.loss, due(step + 1, self.config.train.log_every, self.total)
        return {"penalty": self.learner.penalty()} if logged and (loss.l1 or loss.l2) else {}

    def _rates(self, step: int) -> tuple[float, float | None]:
        """Learning rate and momentum of a step: of its number and of the evaluations before it alone."""
        config, now = self.config, (step, self.total, self._plan.steps_per_epoch, self.config.optim)
        drops = 0
        if config.optim.schedule == "plateau":
            metric, optim = config.train.metric, config.optim
            values = [found["metrics"][metric] for found in self.state.evaluations]
            drops = plateau_drops(values, metric_mode(metric), optim.plateau_patience, optim.plateau_delta)
        return learning_rate(*now, drops) * batch_factor(config.optim, config.train.global_batch), momentum(*now)

    def line(self, **values: Any) -> None:
        """One line of metrics.jsonl."""
        self.recorder.line(self.state, **values, seconds=dict(self.clock.seconds))

    def evaluation_due(self) -> bool:
        """Whether the step just done is followed by an evaluation."""
        return evaluation_due(self.state.step, self.config.train.eval_every, self._plan, self.total)

    @property
    def epochs(self) -> float:
        """Passes over the training rows so far."""
        return self._plan.epochs(self.state.step)

    def completes_an_epoch(self) -> bool:
        """Whether the step just done does, or is the last."""
        return evaluation_due(self.state.step, 1, self._plan, self.total)

    def next_evaluation(self) -> int:
        """The step after which it is evaluated next."""
        every, plan = self.config.train.eval_every, self._plan
        later = range(self.state.step + 1, self.total + 1)
        return next((step for step in later if evaluation_due(step, every, plan, self.total)), self.total)

    def evaluated(self, metrics: dict[str, Any], calibration: Calibration | None = None) -> None:
        """Note the metrics of this step, and what its validation rows choose."""
        self.state = self.state.evaluated(metrics, calibration)
        self.line(**{f"val_{name}": value for name, value in metrics.items()})

    def commit(self, *, evaluated: bool) -> None:
        """Commit the state in the background."""
        with self.clock("checkpoint"):
            self.recorder.commit(self.learner, self.state, evaluated)

    def findings(self) -> dict[str, Any]:
        """What it has to tell beside its state: nothing."""
        return {}

    def settle(self) -> None:
        """See whether it has ended."""
        self.status = self.status or self.state.status(self.config.train, self._plan)
