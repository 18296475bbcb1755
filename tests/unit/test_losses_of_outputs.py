"""Losses of yes and no and of numbers, against torch's and torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from raycnn.config import LossConfig
from raycnn.training.losses import BatchLoss
from raycnn.training.losses_of_outputs import number_loss, sigmoid_loss

CPU = torch.device("cpu")
COUNTS = np.array([[90, 10], [50, 50], [1, 99], [100, 0]])


def batch(columns: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(12, columns, generator=generator)).requires_grad_()
    targets = (torch.rand(12, columns, generator=generator) < 0.4).float()
    return logits, targets, torch.arange(12) % 3 != 1


def yes_no(counts: Any = None, **settings: Any) -> BatchLoss:
    return sigmoid_loss(LossConfig(**settings), counts, CPU)


def same(loss: Tensor, expected: Tensor, logits: Tensor) -> None:
    """In value and in gradient."""
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(each, logits)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("columns", [1, 4])
def test_bce_is_torchs_mean_over_the_classes(columns: int) -> None:
    logits, targets, valid = batch(columns)
    rows = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    same(yes_no()(logits, targets, valid), rows[valid].sum(), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_torchvisions(gamma: float) -> None:
    logits, targets, valid = batch()
    rows = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma).mean(1)
    same(yes_no(name="focal", focal_gamma=gamma)(logits, targets, valid), rows[valid].sum(), logits)


def test_weights_are_those_of_each_class_by_itself() -> None:
    logits, targets, valid = batch()
    # yes and no weigh the same in sum, 1 in the mean over rows; a class that all have or none has stays as it is
    weights = torch.tensor([[100 / 180, 5.0], [1.0, 1.0], [50.0, 100 / 198], [1.0, 0.0]])
    weights_NK = torch.where(targets > 0, weights[:, 1], weights[:, 0])
    rows = F.binary_cross_entropy_with_logits(logits, targets, weights_NK, reduction="none").mean(1)
    same(yes_no(COUNTS, class_weights="balanced")(logits, targets, valid), rows[valid].sum(), logits)


def test_smoothing_and_adjustment() -> None:
    logits, targets, valid = batch()
    shift = torch.tensor(np.log([10 / 90, 1.0, 99.0, 0.5 / 100]), dtype=torch.float32)
    soft = targets * 0.8 + 0.1
    rows = F.binary_cross_entropy_with_logits(logits + shift, soft, reduction="none").mean(1)
    loss = yes_no(COUNTS, label_smoothing=0.2, logit_adjustment=1.0)
    same(loss(logits, targets, valid), rows[valid].sum(), logits)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, torch.nn.MSELoss(reduction="sum")),
        ({"name": "mse"}, torch.nn.MSELoss(reduction="sum")),
        ({"name": "l1"}, torch.nn.L1Loss(reduction="sum")),
        ({"name": "huber", "huber_delta": 0.3}, torch.nn.HuberLoss(reduction="sum", delta=0.3)),
    ],
)
def test_numbers(settings: dict[str, Any], expected: Any) -> None:
    outputs, _, valid = batch(1)
    targets = torch.linspace(-1, 1, 12, dtype=torch.float64)
    loss = number_loss(LossConfig(**settings), None, CPU)
    same(loss(outputs, targets, valid), expected(outputs[valid, 0], targets[valid].float()), outputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "loss",
    [
        yes_no(),
        yes_no(COUNTS, name="focal", class_weights="effective", label_smoothing=0.1, logit_adjustment=1.0),
        number_loss(LossConfig(), None, CPU),
        number_loss(LossConfig(name="huber"), None, CPU),
    ],
)
def test_masked_rows_give_exactly_no_gradient(loss: BatchLoss, bad: float) -> None:
    logits, targets, valid = batch()
    if loss.__qualname__.startswith("number"):  # type: ignore[attr-defined]
        targets = targets[:, 0]
    clean = loss(logits, targets, valid)
    (expected,) = torch.autograd.grad(clean, logits)
    poisoned = torch.where(valid[:, None], logits.detach(), bad).requires_grad_()
    mask = valid if targets.ndim == 1 else valid[:, None]
    found = loss(poisoned, torch.where(mask, targets, bad), valid)
    (gradient,) = torch.autograd.grad(found, poisoned)
    assert torch.equal(found, clean)
    assert torch.equal(gradient, expected)
    assert not gradient[~valid].any()
    parts = [loss(logits[i : i + 1], targets[i : i + 1], valid[i : i + 1]) for i in range(12)]
    factors = torch.linspace(0, 1, 12)
    torch.testing.assert_close(loss(logits, targets, valid, factors), (factors * torch.stack(parts)).sum())
