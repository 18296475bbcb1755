"""Losses that a caller from Python gives: the batch's mask, shares and sum are ours, and what is refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycnn.config import Config, identity, load_config
from raycnn.config.given import Given
from raycnn.errors import ConfigError
from raycnn.models.given import with_given
from raycnn.training.asked import settled
from raycnn.training.given_loss import given_loss, try_out
from raycnn.training.losses import Mixed, cross_entropy_sum, of_mixed, one_label_loss
from raycnn.training.losses_of_outputs import number_loss, sigmoid_loss
from raycnn.training.problems import ONE_LABEL, Binary, MultiLabel, Problem, Regression

CPU = torch.device("cpu")
TREE = {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "reference/lenet"}}


def entropy(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NK, labels_N, reduction="none")


def loss_of(function: Any) -> Any:
    return given_loss("python/f", Given(loss=function), CPU)


def batch(rows: int = 12, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, requires_grad=True)
    return logits, torch.randint(classes, (rows,), generator=generator), torch.arange(rows) % 3 != 1


@pytest.mark.parametrize("function", [entropy, nn.CrossEntropyLoss(reduction="none")], ids=["function", "module"])
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_masked_rows_and_shares_are_as_of_our_own(function: Any, bad: float) -> None:
    logits, labels, valid = batch()
    with torch.no_grad():
        logits[~valid] = bad
    labels[~valid] = 999
    factors = torch.linspace(0, 1, len(labels))
    for more in ({}, {"factors_N": factors}):
        found, expected = (each(logits, labels, valid, **more) for each in (loss_of(function), cross_entropy_sum))
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(each, logits)[0] for each in (found, expected)]
        torch.testing.assert_close(*gradients)
        assert torch.equal(gradients[0][~valid], torch.zeros_like(gradients[0][~valid]))


def test_mixed_images_have_both_labels() -> None:
    logits, labels, valid = batch()
    mixed = Mixed(labels, labels.flip(0), torch.linspace(0, 1, len(labels)))
    ours = one_label_loss(load_config(TREE).loss, None, CPU)
    found, expected = (of_mixed(each, logits, mixed, valid) for each in (loss_of(entropy), ours))
    torch.testing.assert_close(found, expected)


def squares(outputs_N1: Tensor, targets_N: Tensor) -> Tensor:
    return (outputs_N1[:, 0] - targets_N).square()


def binary(logits_NK: Tensor, targets_NK: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits_NK, targets_NK, reduction="none").mean(1)


def test_targets_of_other_tasks() -> None:
    logits, _, valid = batch()
    yes, numbers = (logits.detach().flip(0) > 0).float(), torch.linspace(-2, 2, 12, dtype=torch.float64)
    ours = load_config(TREE).loss
    torch.testing.assert_close(loss_of(binary)(logits, yes, valid), sigmoid_loss(ours, None, CPU)(logits, yes, valid))
    outputs = logits[:, :1]
    torch.testing.assert_close(
        loss_of(squares)(outputs, numbers, valid), number_loss(ours, None, CPU)(outputs, numbers, valid)
    )


TABLE = pa.table({"label": [0, 1, 1, 0, 1], "value": [1.0, 2.0, 3.0, 4.0, 5.0]})


@pytest.mark.parametrize(
    ("function", "problem"),
    [(entropy, ONE_LABEL), (binary, Binary()), (binary, MultiLabel(2)), (squares, Regression(3.0, 1.0))],
)
def test_what_can_be_used_is_let_through(function: Any, problem: Problem) -> None:
    try_out(loss_of(function), "python/f", problem, TABLE, problem.num_outputs(("a", "b")), CPU)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nn.CrossEntropyLoss(), r"python/f gives \[\] for 5 rows \(loss\): give the loss of each row"),
        (lambda logits_NK, labels_N: logits_NK, r"gives \[5, 2\] for 5 rows"),
        (lambda logits_NK, labels_N: 0.5, "gives float for 5 rows"),
        (lambda logits_NK, labels_N: logits_NK.sum(1).log(), "gives NaN or Inf for logits between -1 and 1"),
        (lambda logits_NK, labels_N: logits_NK.square().sum(1) * 0 / 0, "gives NaN or Inf"),
        (lambda logits_NK, labels_N: logits_NK.detach().sum(1), "fails: RuntimeError"),
        (lambda logits_NK: logits_NK, "fails: TypeError"),
    ],
)
def test_what_cannot_is_refused_in_one_line(function: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        try_out(loss_of(function), "python/f", ONE_LABEL, TABLE, 2, CPU)


def config(loss: Any = entropy, **changes: Any) -> Config:
    return with_given(load_config(TREE, changes), None, loss)


def test_it_is_known_by_its_name() -> None:
    assert config().loss.name == "python/entropy"
    assert config().model.name == "reference/lenet"
    assert identity(config())["loss.name"] == "python/entropy"
    assert config(nn.MSELoss(reduction="none")).loss.name == "python/MSELoss"
    settled(config(), ONE_LABEL, "accuracy")


@pytest.mark.parametrize("setting", [{"loss.label_smoothing": 0.1}, {"loss.class_weights": "balanced"}])
def test_what_it_would_have_to_do_by_itself_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="leave label_smoothing"):
        settled(config(**setting), ONE_LABEL, "accuracy")


def test_a_loss_that_is_not_there_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"give it again, from Python: raycnn\.train\(config, loss=\.\.\.\)"):
        given_loss("python/entropy", Given(), CPU)
