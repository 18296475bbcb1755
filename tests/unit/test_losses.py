from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from raycnn.config import LossConfig
from raycnn.training.losses import (
    Mixed,
    class_weights,
    cross_entropy_sum,
    focal_sum,
    of_mixed,
    one_label_loss,
    square_sum,
)


def batch(rows: int = 12, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, requires_grad=True)
    labels = torch.randint(classes, (rows,), generator=generator)
    valid = torch.arange(rows) % 3 != 1
    return logits, labels, valid


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_loss_of_the_valid_rows_alone(weights: Tensor | None, smoothing: float) -> None:
    logits, labels, valid = batch()
    loss = cross_entropy_sum(logits, labels, valid, class_weights_K=weights, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    alone = logits[valid].detach().requires_grad_()
    expected = F.cross_entropy(alone, labels[valid], weight=weights, reduction="sum", label_smoothing=smoothing)
    (expected_gradient,) = torch.autograd.grad(expected, alone)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[valid], expected_gradient)
    assert torch.equal(gradient[~valid], torch.zeros_like(gradient[~valid]))


def test_smoothing_is_the_smoothed_target() -> None:
    logits, labels, valid = batch()
    targets = F.one_hot(labels, 5) * 0.8 + 0.2 / 5
    expected = -(targets * logits.log_softmax(1))[valid].sum()
    torch.testing.assert_close(cross_entropy_sum(logits, labels, valid, label_smoothing=0.2), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("label", [-1, 0, 999])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_rows_give_exactly_no_gradient(bad: float, label: int, smoothing: float) -> None:
    logits, labels, valid = batch()
    clean = cross_entropy_sum(logits, labels, valid, label_smoothing=smoothing)
    (clean_gradient,) = torch.autograd.grad(clean, logits)
    poisoned = torch.where(valid[:, None], logits.detach(), bad).requires_grad_()
    loss = cross_entropy_sum(
        poisoned,
        torch.where(valid, labels, label),
        valid,
        class_weights_K=torch.ones(5),
        label_smoothing=smoothing,
    )
    (gradient,) = torch.autograd.grad(loss, poisoned)
    assert torch.equal(loss, clean)
    assert torch.equal(gradient, clean_gradient)


def test_mixed_targets_are_soft_targets() -> None:
    logits, first, valid = batch()
    second, shares = first.roll(1), torch.rand(12, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])
    loss = partial(cross_entropy_sum, class_weights_K=weights)

    def mixed(logits: Tensor, labels: Tensor, valid: Tensor, factors: Tensor | None = None) -> Tensor:
        return loss(logits, labels, valid, factors_N=factors)

    one, other = F.one_hot(first, 5) * shares[:, None], F.one_hot(second, 5) * (1 - shares)[:, None]
    expected = -((one + other) * weights * logits.log_softmax(1))[valid].sum()
    torch.testing.assert_close(of_mixed(mixed, logits, Mixed(first, second, shares), valid), expected)
    assert torch.equal(of_mixed(mixed, logits, first, valid), loss(logits, first, valid))
    halves = [Mixed(first, second, shares)[part] for part in (slice(0, 6), slice(6, 12))]
    assert torch.equal(torch.cat([half.shares_N for half in halves]), shares)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "mse"])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_every_loss_can_be_mixed(name: str, weights: str) -> None:
    logits, first, valid = batch()
    config = LossConfig.model_validate({"name": name, "class_weights": weights, "label_smoothing": 0.1})
    loss = one_label_loss(config, np.array([7, 1, 40, 12, 3]), torch.device("cpu"))
    shares, second = torch.rand(12, generator=torch.Generator().manual_seed(1)), first.roll(1)
    rows = [row for row in range(12) if valid[row]]
    alone = [
        shares[row] * loss(logits[row : row + 1], first[row : row + 1], valid[row : row + 1])
        + (1 - shares[row]) * loss(logits[row : row + 1], second[row : row + 1], valid[row : row + 1])
        for row in rows
    ]
    torch.testing.assert_close(of_mixed(loss, logits, Mixed(first, second, shares), valid), torch.stack(alone).sum())
    poisoned = torch.where(valid[:, None], logits.detach(), float("nan")).requires_grad_()
    mixed = of_mixed(loss, poisoned, Mixed(first, second, shares), valid)
    (gradient,) = torch.autograd.grad(mixed, poisoned)
    assert mixed.isfinite()
    assert torch.equal(gradient[~valid], torch.zeros_like(gradient[~valid]))


def test_no_valid_row_is_a_zero_that_can_go_backward() -> None:
    logits, labels, _ = batch()
    loss = cross_entropy_sum(logits, labels, torch.zeros(12, dtype=torch.bool), class_weights_K=torch.ones(5))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.zeros(4096, 3, dtype=dtype)
    loss = cross_entropy_sum(logits, torch.zeros(4096, dtype=torch.int64), torch.ones(4096, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * np.log(3), rel=1e-5)


def test_a_valid_row_that_is_not_finite_shows() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    loss = cross_entropy_sum(logits, torch.tensor([0, 0]), torch.tensor([True, True]))
    assert not torch.isfinite(loss)


def test_balanced_class_weights_are_scikit_learns() -> None:
    counts = np.array([7, 1, 40, 12])
    labels = np.repeat(np.arange(4), counts)
    weights = class_weights(counts, "balanced")
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(4), y=labels), rtol=1e-12)
    assert weights.dtype == np.float64


@pytest.mark.parametrize("kind", ["none", "balanced"])
@pytest.mark.parametrize("counts", [[7, 1, 40, 12], [5, 5], [3, 0, 9], [0, 0, 1]])
def test_class_weights_have_mean_one_over_the_rows(kind: str, counts: list[int]) -> None:
    weights = class_weights(np.array(counts), kind)  # type: ignore[arg-type]
    assert np.average(weights, weights=counts) == pytest.approx(1.0)


def test_a_class_without_rows_weighs_nothing_when_balanced() -> None:
    assert class_weights(np.array([3, 0, 9]), "balanced").tolist() == [2.0, 0.0, pytest.approx(2 / 3)]


def test_effective_weights_are_those_of_the_paper() -> None:
    counts, beta = np.array([7, 1, 400, 12]), 0.99
    numbers = [sum(beta**i for i in range(n)) for n in counts]  # its equation 2, as a sum
    weights = class_weights(counts, "effective", beta)
    np.testing.assert_allclose(weights * numbers, (weights * numbers)[0], rtol=1e-12)
    assert np.average(weights, weights=counts) == pytest.approx(1.0)


def test_effective_weights_lie_between_none_and_balanced() -> None:
    counts = np.array([7, 0, 40, 12])
    np.testing.assert_allclose(class_weights(counts, "effective", 0.0), [1, 0, 1, 1])
    np.testing.assert_allclose(
        class_weights(counts, "effective", 1 - 1e-9), class_weights(counts, "balanced"), rtol=1e-6
    )


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])])
def test_focal_is_its_formula_and_cross_entropy_at_gamma_0(weights: Tensor | None) -> None:
    logits, labels, valid = batch()
    p = logits.softmax(1)[torch.arange(12), labels]
    w = torch.ones(5)[labels] if weights is None else weights[labels]
    expected = -(w * (1 - p) ** 1.5 * p.log())[valid].sum()
    torch.testing.assert_close(focal_sum(logits, labels, valid, gamma=1.5, class_weights_K=weights), expected)
    for smoothing in (0.0, 0.1):
        plain = cross_entropy_sum(logits, labels, valid, class_weights_K=weights, label_smoothing=smoothing)
        also = {"class_weights_K": weights, "label_smoothing": smoothing}
        torch.testing.assert_close(focal_sum(logits, labels, valid, gamma=0.0, **also), plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_of_what_is_certain_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    focal_sum(logits, torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool), gamma=gamma).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_squares_are_the_mean_over_classes_to_the_one_hot_label() -> None:
    logits, labels, valid = batch()
    weights = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0])
    rows = F.mse_loss(logits.softmax(1), F.one_hot(labels, 5).float(), reduction="none").mean(1)
    torch.testing.assert_close(square_sum(logits, labels, valid), rows[valid].sum())
    torch.testing.assert_close(
        square_sum(logits, labels, valid, class_weights_K=weights), (rows * weights[labels])[valid].sum()
    )


@pytest.mark.parametrize("name", ["auto", "cross_entropy", "focal", "mse"])
@pytest.mark.parametrize("also", [{}, {"label_smoothing": 0.1}, {"class_weights": "effective", "logit_adjustment": 1}])
def test_every_loss_leaves_masked_rows_out(name: str, also: dict[str, Any]) -> None:
    logits, labels, valid = batch()
    loss = one_label_loss(LossConfig(name=name, **also), np.array([3, 1, 4, 1, 5]), torch.device("cpu"))
    clean = loss(logits, labels, valid)
    (expected,) = torch.autograd.grad(clean, logits)
    poisoned = torch.where(valid[:, None], logits.detach(), float("nan")).requires_grad_()
    got = loss(poisoned, torch.where(valid, labels, -1), valid)
    (gradient,) = torch.autograd.grad(got, poisoned)
    assert torch.equal(got, clean)
    assert torch.equal(gradient, expected)
    assert not gradient[~valid].any()
    parts = [loss(logits[i : i + 1], labels[i : i + 1], valid[i : i + 1]) for i in range(12)]
    torch.testing.assert_close(torch.stack(parts).sum(), clean)


def test_adjusted_logits_need_not_learn_the_priors() -> None:
    counts = np.array([70, 5, 25])
    labels = torch.from_numpy(np.repeat(np.arange(3), counts))
    logits = torch.zeros(100, 3, requires_grad=True)
    loss = one_label_loss(LossConfig(logit_adjustment=1.0), counts, torch.device("cpu"))
    loss(logits, labels, torch.ones(100, dtype=torch.bool)).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(3), atol=1e-5, rtol=0)  # what all rows share is learnt


def test_adjustment_is_tau_times_the_log_of_the_priors() -> None:
    logits, labels, valid = batch()
    counts = np.array([3, 0, 4, 1, 5])
    shift = 0.5 * torch.tensor(np.log([3, 0.5, 4, 1, 5]) - np.log(13.5), dtype=torch.float32)
    loss = one_label_loss(LossConfig(logit_adjustment=0.5), counts, torch.device("cpu"))
    torch.testing.assert_close(loss(logits, labels, valid), cross_entropy_sum(logits + shift, labels, valid))
