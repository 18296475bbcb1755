"""L1 and L2 penalties on the weights: terms of the loss that do not depend on a batch.

They are added to the gradient once it is that of all ranks, so each counts once whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class Strengths(Protocol):
    """l1 times the sum of the absolute weights, plus l2 times the sum of their squares."""

    @property
    def l1(self) -> float:
        """Of the absolute weights."""

    @property
    def l2(self) -> float:
        """Of their squares."""


def penalised(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What of the parameters trains in this step and is no norm or bias, which have at most one axis."""
    return [each for each in parameters if each.grad is not None and each.ndim > 1]


def penalty(parameters: Iterable[Tensor], strengths: Strengths) -> float:
    """The value of the penalties on these parameters."""
    weights = [each.detach().double() for each in penalised(parameters)]
    absolute, squares = ([float(form(each).sum()) for each in weights] for form in (torch.abs, torch.square))
    return strengths.l1 * math.fsum(absolute) + strengths.l2 * math.fsum(squares)


@torch.no_grad()
def add_gradient(parameters: Iterable[Tensor], strengths: Strengths) -> None:
    """Add the gradient of the penalties to that of the parameters; of abs it is 0 at 0."""
    weights = penalised(parameters) if strengths.l1 or strengths.l2 else []
    if not weights:
        return
    gradients = [each.grad for each in weights if each.grad is not None]
    if strengths.l2:
        torch._foreach_add_(gradients, weights, alpha=2 * strengths.l2)
    if strengths.l1:
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=strengths.l1)
