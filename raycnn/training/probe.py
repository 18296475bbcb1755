"""A learning-rate range test: the steps of a run, at rates that rise until the loss runs away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from raycnn.errors import DivergedError
from raycnn.training.member import Member
from raycnn.training.ranks import Ranks
from raycnn.training.schedule import batch_factor

_SMOOTHING: Final = 0.9
_AWAY: Final = 4.0


class Probe(Member):
    """A fit whose learning rate rises exponentially, from lr_find.low to lr_find.high; it ends when its loss runs away.

    Smith, "Cyclical Learning Rates for Training Neural Networks", 2017. It is not evaluated and commits nothing.

    Attributes:
        points: optim.lr and mean loss of each step.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.points: list[tuple[float, float]] = []

    def step(self, inputs: Tensor, targets: Any, valid: Tensor, count: float, ranks: Ranks) -> None:  # all ranks
        """Train one step; a gradient that is not finite ends it."""
        lr = self._lr(self.state.step)
        try:
            super().step(inputs, targets, valid, count, ranks)
        except DivergedError:
            self.status = "finished"
            return
        if self.loss is None or not math.isfinite(self.loss):
            self.status = "finished"
            return
        self.points.append((lr, self.loss))
        smooth = smoothed([loss for _, loss in self.points])
        if smooth[-1] > _AWAY * min(smooth):
            self.status = "finished"

    def _lr(self, step: int) -> float:
        low, high = self.config.lr_find.low, self.config.lr_find.high
        return float(low * (high / low) ** (step / max(self.total - 1, 1)))

    def _rates(self, step: int) -> tuple[float, float | None]:
        return self._lr(step) * batch_factor(self.config.optim, self.config.train.global_batch), None

    def evaluation_due(self) -> bool:
        """Never."""
        return False

    def commit(self, *, evaluated: bool) -> None:
        """Nothing."""

    def findings(self) -> dict[str, Any]:
        """{curve: [(optim.lr, loss)]}"""
        return {"curve": self.points}


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential means of the losses so far, each a mean in truth from the first one on."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append(mean / (1 - _SMOOTHING**number))
    return found
