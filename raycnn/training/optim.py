"""The optimizer, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from raycnn.config import OptimConfig


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> Optimizer:
    """SGD or AdamW over `named_parameters`, with weight decay on matrices and kernels alone.

    Norms and biases, i.e. parameters with at most one axis, are not decayed (He et al., "Bag of Tricks for
    Image Classification", 2019). SGD adds the decay to the gradient; AdamW keeps it apart (Loshchilov and
    Hutter, 2019).

    Args:
        named_parameters: all that ever train; a parameter without gradient is left alone by a step.
        config: the optim section; its lr is the one to start from, `learning_rate` gives each step's.

    Returns:
        An optimizer with two groups, decayed and not, each in the order given, so its state dict fits any
        other built over the same names.
    """
    trainable = [parameter for _, parameter in named_parameters]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # torch's own choice depends on its version; equal bits need the same kernels after a resume
    foreach = all(p.is_cuda for p in trainable)
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, foreach=foreach)
    return AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), foreach=foreach, fused=False)


def learning_rate(step: int, total_steps: int, steps_per_epoch: float, config: OptimConfig) -> float:
    """The learning rate of one step.

    A linear warmup of config.warmup_epochs from just above zero, then constant, or half a cosine that reaches
    zero at `total_steps` (Loshchilov and Hutter, "SGDR", 2017).

    Args:
        step: the global step, from 0.
        total_steps: length of the whole run.
        steps_per_epoch: not whole in general.
        config: the optim section.
    """
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return config.lr * (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - warmup_steps) / max(total_steps - warmup_steps, 1.0))
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))
