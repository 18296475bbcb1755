"""Learning rate and momentum as functions of the global step, so that a resumed run cannot be at others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from raycnn.config import OptimConfig
from raycnn.training.metrics import Mode, is_better

_EPSILON: Final = 1e-9
_RISE: Final = 0.3
_START: Final = 1 / 25
_END: Final = 1e-4
_REFERENCE_BATCH: Final = 256


def learning_rate(step: int, total_steps: int, steps_per_epoch: float, config: OptimConfig, drops: int = 0) -> float:
    """The learning rate of one step, at most config.lr.

    After a linear warmup of config.warmup_epochs from just above zero: constant; half a cosine that reaches zero at
    `total_steps` (Loshchilov and Hutter, "SGDR", 2017); a power of the share of steps that are left, so 1 is linear;
    or times config.factor at certain epochs, or at each of `drops`. onecycle has its rise in place of a warmup: half a
    cosine from lr / 25, and another one down to lr / 250,000 (Smith and Topin, "Super-Convergence", 2018, with the
    numbers of torch's OneCycleLR).

    Args:
        step: the global step, from 0.
        total_steps: length of the whole run.
        steps_per_epoch: not whole in general.
        config: the optim section.
        drops: how often the rate has been lowered so far, see `plateau_drops`.
    """
    if config.schedule == "onecycle":
        return _cycle(step, total_steps, steps_per_epoch, config, (_START, 1.0, _START * _END)) * config.lr
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return config.lr * (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(total_steps - warmup_steps, 1.0))
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "polynomial":
        return float(config.lr * (1 - done) ** config.power)
    if config.schedule == "step":
        drops = _drops(step, total_steps, steps_per_epoch, config.step_epochs)
    return float(config.lr * config.factor**drops) if drops else config.lr


def momentum(step: int, total_steps: int, steps_per_epoch: float, config: OptimConfig) -> float | None:
    """What momentum (sgd, rmsprop) or the first beta has to be in one step; None: always config.momentum.

    With onecycle it mirrors the learning rate, down to config.low_momentum at its peak (Smith, "A disciplined approach
    to neural network hyper-parameters", 2018).
    """
    if config.schedule != "onecycle" or config.low_momentum is None:
        return None
    high, low = config.momentum, min(config.momentum, config.low_momentum)
    return _cycle(step, total_steps, steps_per_epoch, config, (high, low, high))


def batch_factor(config: OptimConfig, global_batch: int) -> float:
    """What learning rates are multiplied by for batches of another size than 256.

    linear: by the same factor (Goyal et al., "Accurate, Large Minibatch SGD", 2017); sqrt: by its root (Krizhevsky,
    2014; You et al., 2020, for LAMB).
    """
    factor = global_batch / _REFERENCE_BATCH
    return {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[config.lr_scaling]


def plateau_drops(values: Sequence[float | None], mode: Mode, patience: int, min_delta: float) -> int:
    """How often `patience` evaluations one after the other have failed to beat the best one before them.

    After each time the count starts anew, as that of torch's ReduceLROnPlateau. Evaluations without a value, on no
    rows, do not count.
    """
    best, waited, drops = None, 0, 0
    for value in values:
        if value is None:
            continue
        if is_better(value, best, mode, min_delta):
            best, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            waited, drops = 0, drops + 1
    return drops


def _cycle(
    step: int, total_steps: int, steps_per_epoch: float, config: OptimConfig, values: tuple[float, float, float]
) -> float:
    """From the first of the values to the second and on to the third, along half a cosine each."""
    start, peak, end = values
    top = (config.warmup_epochs * steps_per_epoch or _RISE * total_steps) - 1
    if step < top:
        old, new, share = start, peak, step / top
    else:
        old, new, share = peak, end, min(1.0, (step - top) / max(total_steps - 1 - top, 1.0))
    return new + (old - new) * 0.5 * (1 + math.cos(math.pi * share))


def _drops(step: int, total_steps: int, steps_per_epoch: float, step_epochs: float | tuple[float, ...] | None) -> int:
    if step_epochs is None:
        return min(2, 3 * step // total_steps)
    epoch = step / steps_per_epoch + _EPSILON
    if isinstance(step_epochs, tuple):
        return sum(epoch >= each for each in step_epochs)
    return int(epoch / step_epochs)
