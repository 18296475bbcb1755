"""Metrics of yes and no and of numbers, against scikit-learn's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from raycnn.training.metrics import metric_mode
from raycnn.training.metrics_of_outputs import (
    BINARY,
    MULTI_LABEL,
    NUMBER,
    binary_metrics,
    multi_label_details,
    multi_label_metrics,
    number_metrics,
)


def sample(rows: int, classes: int, seed: int, *, ties: bool) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    targets = (random.random((rows, classes)) < random.random(classes)).astype(np.float32)
    logits = (random.normal(size=(rows, classes)) * 2 + targets).astype(np.float32)
    return (np.round(logits) if ties else logits), targets


def agree(measured: Any, expected: Any) -> None:
    assert {name for name in expected if measured[name] is None} == {
        n for n, value in expected.items() if value is None
    }
    known = {name: value for name, value in expected.items() if value is not None}
    assert {name: measured[name] for name in known} == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "classes"), [(1, 3), (5, 2), (60, 1), (60, 4), (300, 12)])
def test_multi_label(rows: int, classes: int, seed: int, ties: bool) -> None:
    logits, targets = sample(rows, classes, seed, ties=ties)
    said, true, scores = logits > 0, targets > 0, logits.astype(np.float64)
    mixed = [k for k in range(classes) if 0 < true[:, k].sum() < rows]
    present, occurs = np.flatnonzero(true.any(0)), np.flatnonzero((said | true).any(0))
    averages = [sk.average_precision_score(true[:, k], scores[:, k]) for k in present]
    f1 = [sk.f1_score(true[:, k], said[:, k]) for k in occurs]
    p = expit(scores)
    flat = sk.log_loss(true.ravel(), p.ravel(), labels=[False, True])
    expected = {
        "map": np.mean(averages) if averages else None,
        "micro_f1": sk.f1_score(true, said, average="micro") if len(occurs) and classes > 1 else None,
        "macro_f1": np.mean(f1) if f1 else None,
        "subset_accuracy": sk.accuracy_score(true, said),
        "auroc": np.mean([sk.roc_auc_score(true[:, k], scores[:, k]) for k in mixed]) if mixed else None,
        "loss": flat,
    }
    measured = multi_label_metrics(logits, targets)
    assert tuple(measured) == MULTI_LABEL
    if classes == 1:
        expected["micro_f1"] = expected["macro_f1"]
    agree(measured, expected)
    for k, row in enumerate(multi_label_details(logits, targets, [f"c{k}" for k in range(classes)])["per_class"]):
        assert row["rows"] == true[:, k].sum()
        if said[:, k].any():
            assert row["precision"] == pytest.approx(sk.precision_score(true[:, k], said[:, k]))
        if k in present:
            assert row["recall"] == pytest.approx(sk.recall_score(true[:, k], said[:, k]))
            assert row["average_precision"] == pytest.approx(averages[list(present).index(k)])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_binary(seed: int, ties: bool) -> None:
    logits, targets = sample(80, 1, seed, ties=ties)
    said, true, p = logits[:, 0] > 0, targets[:, 0] > 0, expit(logits[:, 0].astype(np.float64))
    expected = {
        "accuracy": sk.accuracy_score(true, said),
        "balanced_accuracy": sk.balanced_accuracy_score(true, said),
        "f1": sk.f1_score(true, said),
        "auroc": sk.roc_auc_score(true, logits[:, 0]),
        "average_precision": sk.average_precision_score(true, logits[:, 0]),
        "brier": sk.brier_score_loss(true, p),
        "loss": sk.log_loss(true, p),
    }
    measured = binary_metrics(logits, targets)
    assert tuple(measured) == BINARY
    agree(measured, expected)


def test_the_calibration_error_counts_every_answer() -> None:
    logits = np.log(np.array([[0.9, 0.2], [0.9, 0.2]]) / np.array([[0.1, 0.8], [0.1, 0.8]])).astype(np.float32)
    targets = np.array([[1, 0], [0, 0]], np.float32)  # sure at 0.9: half right; sure at 0.8: all right
    assert multi_label_metrics(logits, targets)["ece"] == pytest.approx((0.8 + 0.4) / 4, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_numbers(seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.normal(50, 10, 40)
    values = targets + random.normal(size=40)
    expected = {
        "rmse": sk.root_mean_squared_error(targets, values),
        "mae": sk.mean_absolute_error(targets, values),
        "r2": sk.r2_score(targets, values),
        "loss": sk.mean_squared_error(targets / 10, values / 10),
    }
    measured = number_metrics(values, targets, 10.0)
    assert tuple(measured) == NUMBER
    assert measured == pytest.approx(expected, rel=1e-9)


def test_what_does_not_apply_is_none_and_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nan = np.full((3, 2), np.nan, np.float32)
        assert set(multi_label_metrics(nan, np.ones((3, 2))).values()) == {None}
        assert set(multi_label_metrics(np.zeros((0, 2), np.float32), np.ones((0, 2))).values()) == {None}
        assert set(binary_metrics(np.zeros((0, 1), np.float32), np.ones((0, 1))).values()) == {None}
        assert set(number_metrics(np.full(3, np.inf), np.ones(3), 1.0).values()) == {None}
        nothing = multi_label_metrics(np.full((3, 2), -1, np.float32), np.zeros((3, 2)))
        assert [name for name, value in nothing.items() if value is None] == ["map", "micro_f1", "macro_f1", "auroc"]
        one = binary_metrics(np.full((3, 1), -1, np.float32), np.zeros((3, 1)))
        assert [name for name, value in one.items() if value is None] == ["f1", "auroc", "average_precision"]
        assert number_metrics(np.zeros(2), np.ones(2), 1.0)["r2"] is None


def test_modes() -> None:
    less = {name for name in (*BINARY, *MULTI_LABEL, *NUMBER) if metric_mode(name) == "min"}
    assert less == {"brier", "ece", "loss", "rmse", "mae"}
