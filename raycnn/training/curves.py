"""Training and validation loss side by side, and what their course says of the settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from raycnn.config import Config
from raycnn.data.plan import Plan

_WORSE: Final = 0.03
"""By which share a validation loss must be above its lowest to be called worse: evaluations vary that much."""
_FALLING: Final = 0.01
"""By which share of it a loss must fall from one evaluation to the next to be called falling."""


@dataclass(frozen=True)
class Point:
    """One evaluation: losses on the validation rows, and on the training batches of logged steps since the last one.

    The training loss is what was minimised, with smoothing, weights and mixed images; the validation loss is plain.
    """

    epoch: float
    train_loss: float | None
    val_loss: float | None

    @property
    def gap(self) -> float | None:
        """How much higher the validation loss is."""
        if self.train_loss is None or self.val_loss is None:
            return None
        return self.val_loss - self.train_loss


def points_of(lines: Iterable[str], plan: Plan) -> list[Point]:
    """The curves of a run, from the lines of its metrics.jsonl."""
    points: list[Point] = []
    losses: list[float] = []
    for line in map(json.loads, lines):
        if line.get("loss") is not None:
            losses.append(line["loss"])
        if "val_loss" in line:
            mean = sum(losses) / len(losses) if losses else None
            points.append(Point(round(plan.epochs(line["step"]), 3), mean, line["val_loss"]))
            losses = []
    return points


def advice(points: Sequence[Point], config: Config) -> str | None:
    """One sentence on what to change, None where the curves ask for nothing."""
    known = [(point, point.train_loss, point.val_loss) for point in points]
    whole = [(point, train, val) for point, train, val in known if train is not None and val is not None]
    if len(whole) < 3:
        return None
    best, train_then, lowest = min(whole, key=lambda each: each[2])
    _, train, val = whole[-1]
    if val > lowest * (1 + _WORSE) and train < train_then:
        return (
            f"overfitting: the validation loss was lowest at epoch {best.epoch:g} ({lowest:.3g}) and is {val:.3g}, "
            f"while the training loss fell from {train_then:.3g} to {train:.3g}; {_against_overfitting(config)}"
        )
    _, train_before, val_before = whole[-2]
    if _falls(train_before, train) and _falls(val_before, val):
        return (
            f"both losses still fell at the end: a larger train.epochs than {config.train.epochs:g} continues the run"
        )
    return None


def summary(points: Sequence[Point], config: Config) -> dict[str, Any]:
    """What a run's result says of its curves: {curves: [{epoch, train_loss, val_loss, gap}], advice}."""
    return {
        "curves": [asdict(point) | {"gap": point.gap} for point in points],
        "advice": advice(points, config),
    }


def _falls(before: float, after: float) -> bool:
    return after < before * (1 - _FALLING)


def _against_overfitting(config: Config) -> str:
    """Settings that are at their weakest, the usual first remedies first."""
    found = [] if config.train.patience else ["train.patience: 2 stops such a run"]
    if not config.augment.random:
        found.append("augment.crop_scale and hflip show other views of each image")
    elif not config.augment.mixup:
        found.append("augment.mixup: 0.2")
    if config.optim.weight_decay < 0.05:
        found.append("a larger optim.weight_decay")
    if config.model.unfreeze == "all":
        found.append("a smaller model.unfreeze")
    return "try " + ", ".join(found or ["a lower optim.lr", "more images"])
