"""A loss that a caller from Python gives, as the loss of a batch: masks, shares of mixed images and sums are ours."""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from raycnn.config import Given
from raycnn.errors import ConfigError
from raycnn.training.device import to_device
from raycnn.training.losses import BatchLoss, masked, sum_of
from raycnn.training.problems import Problem

_TRIED: Final = 8


def given_loss(name: str, given: Given, device: torch.device) -> BatchLoss:
    """The loss of this name.

    Args:
        name: loss.name.
        given: what goes with the config; its loss is a function of float32 logits_NK and targets (int64[N] classes,
            float32[N, K] of 0 and 1, or float32[N] numbers in standard deviations) that gives float[N].
        device: where the logits are.

    Raises:
        ConfigError: none is given; by a call, if it does not give one loss a row.
    """
    if given.loss is None:
        fix = "give it again, from Python: raycnn.train(config, loss=...)"
        raise ConfigError(f"{name} is a loss that was given from Python", where="loss.name", fix=fix)
    function = copy.deepcopy(given.loss).to(device) if isinstance(given.loss, nn.Module) else given.loss

    def loss(logits_NK: Tensor, targets: Tensor, valid_N: Tensor, factors_N: Tensor | None = None) -> Tensor:
        valid = valid_N.view(-1, *[1] * (targets.ndim - 1))
        targets = torch.where(valid, targets.float() if targets.is_floating_point() else targets, 0)
        losses_N = function(masked(logits_NK, valid_N), targets)
        if not isinstance(losses_N, Tensor) or losses_N.shape != valid_N.shape:
            found = list(losses_N.shape) if isinstance(losses_N, Tensor) else type(losses_N).__name__
            fix = "give the loss of each row, float[N]: no mean and no sum over rows"
            raise ConfigError(f"{name} gives {found} for {len(valid_N)} rows", where="loss", fix=fix)
        return sum_of(losses_N.float(), valid_N, factors_N)

    return loss


def try_out(
    loss: BatchLoss, name: str, problem: Problem, table: pa.Table, num_outputs: int, device: torch.device
) -> None:
    """Compute it on a few training rows with made-up logits, before anything is trained.

    Raises:
        ConfigError: it fails, or does not give finite numbers with a gradient.
    """
    targets = to_device(problem.targets(table, np.arange(min(_TRIED, len(table)))), device)
    logits_NK = torch.linspace(-1, 1, len(targets) * num_outputs, device=device).view(len(targets), num_outputs)
    logits_NK.requires_grad_()
    try:
        total = loss(logits_NK, targets, torch.ones(len(targets), dtype=torch.bool, device=device))
        found = torch.cat([total.detach()[None], *(each.ravel() for each in torch.autograd.grad(total, logits_NK))])
    except ConfigError:
        raise
    except Exception as error:  # whatever the caller's code raises
        fix = "give a function of (logits_NK, targets) that torch can differentiate"
        raise ConfigError(f"{name} fails: {type(error).__name__}: {error}", where="loss", fix=fix) from error
    if not torch.isfinite(found).all():
        fix = "let it be finite for all logits, and its gradient"
        raise ConfigError(f"{name} gives NaN or Inf for logits between -1 and 1", where="loss", fix=fix)
