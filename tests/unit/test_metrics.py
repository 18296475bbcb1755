from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sk

from raycnn.training.metrics import (
    NAMES,
    classification_metrics,
    details,
    is_better,
    metric_mode,
    should_stop,
)

SHAPES = [(1, 2), (1, 7), (2, 2), (5, 3), (40, 2), (40, 5), (40, 6), (200, 2), (200, 4), (300, 10), (500, 7), (30, 20)]


def sample(rows: int, classes: int, seed: int, *, ties: bool = False) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)).astype(np.float32) * 3
    if ties:  # within rows (two largest logits) and between rows (each drawn several times)
        logits[::2, :2] = logits[::2].max(axis=1, keepdims=True)
        logits = logits[random.integers(rows // 4 + 1, size=rows)]
    labels = np.where(random.random(rows) < 0.5, logits.argmax(1), random.integers(classes, size=rows))
    return logits, labels


def one_vs_rest(logits: Any, labels: Any) -> float | None:
    """scikit-learn's AUROC of every class that has rows and does not have them all, averaged."""
    if logits.shape[1] == 2:
        margins = logits[:, 1].astype(np.float64) - logits[:, 0]
        return sk.roc_auc_score(labels == 1, margins) if len(set(labels)) == 2 else None
    scores = softmax(logits.astype(np.float64), axis=1)
    areas = [sk.roc_auc_score(labels == k, scores[:, k]) for k in np.unique(labels) if (labels != k).any()]
    return float(np.mean(areas)) if areas else None


def calibration_error(logits: Any, labels: Any) -> float:
    """The definition, row by row."""
    scores = softmax(logits.astype(np.float64), axis=1)
    bins: dict[int, list[float]] = {}
    for row, label in zip(scores, labels, strict=True):
        number = next(b for b in range(15) if row.max() <= (b + 1) / 15 or b == 14)
        bins.setdefault(number, []).append(float(row.argmax() == label) - row.max())
    return sum(abs(math.fsum(gaps)) for gaps in bins.values()) / len(labels)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_every_metric_is_scikit_learns(rows: int, classes: int, ties: bool, seed: int) -> None:
    logits, labels = sample(rows, classes, seed, ties=ties)
    predicted = logits.argmax(1)
    occurring = np.unique(np.concatenate([labels, predicted]))
    recalls = sk.recall_score(labels, predicted, labels=np.unique(labels), average=None)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "top5": None,
        "balanced_accuracy": recalls.mean(),
        "macro_f1": sk.f1_score(labels, predicted, labels=occurring, average="macro"),
        "auroc": one_vs_rest(logits, labels),
        "ece": calibration_error(logits, labels),
        "loss": sk.log_loss(labels, softmax(logits.astype(np.float64), axis=1), labels=np.arange(classes)),
    }
    if classes > 5:  # the earlier class first, as argmax has it; scikit-learn turns that round at ties
        best5 = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        expected["top5"] = (best5 == labels[:, None]).any(1).mean()
        if not ties:
            assert expected["top5"] == pytest.approx(
                sk.top_k_accuracy_score(labels, logits, k=5, labels=np.arange(classes))
            )
    measured = classification_metrics(logits, labels)
    assert tuple(measured) == NAMES
    for name, value in expected.items():
        assert measured[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name
    assert all(value is None or type(value) is float for value in measured.values())


def test_the_names_mean_scikit_learns_when_every_class_has_rows() -> None:
    logits, labels = sample(400, 6, 3)
    assert len(set(labels)) == 6
    measured = classification_metrics(logits, labels)
    scores = softmax(logits.astype(np.float64), axis=1)
    predicted = logits.argmax(1)
    assert measured["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert measured["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert measured["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores, multi_class="ovr"))


def test_a_class_without_rows_is_left_out_of_the_means() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 0]]
    measured = classification_metrics(logits, np.array([0, 0, 1, 1, 1]))
    assert measured["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert measured["macro_f1"] == pytest.approx((4 / 5 + 4 / 5) / 2)
    assert measured["auroc"] is not None


def test_equal_logits_rank_in_class_order() -> None:
    measured = classification_metrics(np.zeros((7, 7), np.float32), np.arange(7))
    assert measured["accuracy"] == pytest.approx(1 / 7)
    assert measured["top5"] == pytest.approx(5 / 7)


def test_one_class_alone_has_no_auroc() -> None:
    logits, _ = sample(9, 3, 0)
    assert classification_metrics(logits, np.ones(9, int))["auroc"] is None


def test_no_rows_and_non_finite_logits_give_none_not_nan() -> None:
    nothing = dict.fromkeys(NAMES)
    assert classification_metrics(np.zeros((0, 3), np.float32), np.zeros(0, int)) == nothing
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.zeros((4, 3), np.float32)
        logits[2, 1] = bad
        assert classification_metrics(logits, np.zeros(4, int)) == nothing


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 30), st.integers(2, 8), st.integers(0, 2**32), st.sampled_from([1e-30, 1.0, 1e4, 1e37]))
def test_never_nan_and_always_in_range(rows: int, classes: int, seed: int, scale: float) -> None:
    logits, labels = sample(rows, classes, seed)
    measured = classification_metrics((logits * np.float32(scale)).astype(np.float32), labels)
    for name, value in measured.items():
        assert value is None or 0 <= value <= (math.inf if name == "loss" else 1), (name, value)
        assert value is None or math.isfinite(value)


def test_confident_margins_do_not_become_ties() -> None:
    # float64 probabilities of both rows round to 1.0
    logits = np.array([[0, 50], [0, 60]], np.float32)
    assert classification_metrics(logits, np.array([0, 1]))["auroc"] == 1.0


def test_confidence_on_a_bin_edge_is_in_the_bin_below() -> None:
    # confidence 1/5 = 3/15 twice, right, and 1/6 twice, wrong: all four within (2/15, 3/15]
    logits = np.zeros((4, 6), np.float32)
    logits[:2, 5] = -200
    labels = np.array([0, 0, 1, 1])
    found = classification_metrics(logits, labels)["ece"]
    assert found == pytest.approx(abs(2 * (1 - 1 / 5) + 2 * (0 - 1 / 6)) / 4)
    assert found == pytest.approx(calibration_error(logits, labels))


@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_details_are_scikit_learns(rows: int, classes: int) -> None:
    logits, labels = sample(rows, classes, 5)
    predicted = logits.argmax(1)
    names = [f"class {k}" for k in range(classes)]
    found = details(logits, labels, names)
    confusion = sk.confusion_matrix(labels, predicted, labels=np.arange(classes))
    assert found["confusion"] == confusion.tolist()
    ratios = sk.precision_recall_fscore_support(labels, predicted, labels=np.arange(classes), zero_division=np.nan)
    assert [row["class"] for row in found["per_class"]] == names
    assert [row["rows"] for row in found["per_class"]] == ratios[3].tolist()
    for key, column in zip(("precision", "recall", "f1"), ratios, strict=False):
        expected = [None if math.isnan(x) else pytest.approx(x) for x in column]
        assert [row[key] for row in found["per_class"]] == expected, key


def test_details_without_cases_are_none() -> None:
    found = details(np.eye(3, dtype=np.float32)[[0, 1]], np.array([0, 0]), ["a", "b", "c"])
    assert found["per_class"] == [
        {"class": "a", "rows": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)},
        {"class": "b", "rows": 0, "precision": 0.0, "recall": None, "f1": 0.0},
        {"class": "c", "rows": 0, "precision": None, "recall": None, "f1": None},
    ]


def test_metric_mode() -> None:
    assert [name for name in NAMES if metric_mode(name) == "min"] == ["ece", "loss"]


@pytest.mark.parametrize(
    ("value", "best", "mode", "min_delta", "expected"),
    [
        (0.9, 0.8, "max", 0.0, True),
        (0.8, 0.8, "max", 0.0, False),
        (0.7, 0.8, "max", 0.0, False),
        (0.85, 0.8, "max", 0.1, False),
        (0.7, 0.8, "min", 0.0, True),
        (0.75, 0.8, "min", 0.1, False),
        (0.1, None, "max", 0.5, True),
        (None, 0.1, "max", 0.0, False),
        (None, None, "min", 0.0, False),
    ],
)
def test_is_better(value: Any, best: Any, mode: Any, min_delta: float, expected: bool) -> None:
    assert is_better(value, best, mode, min_delta) is expected


@pytest.mark.parametrize(
    ("values", "mode", "patience", "min_delta", "expected"),
    [
        ([], "max", 1, 0.0, False),
        ([0.5], "max", 1, 0.0, False),
        ([0.5, 0.5], "max", 1, 0.0, True),
        ([0.5, 0.4], "max", 2, 0.0, False),
        ([0.5, 0.4, 0.45], "max", 2, 0.0, True),
        ([0.5, 0.4, 0.6], "max", 2, 0.0, False),
        ([0.5, 0.52, 0.54], "max", 2, 0.03, False),  # 0.54 beats 0.5, the last value that counted
        ([0.5, 0.52, 0.53], "max", 2, 0.05, True),
        ([1.0, 2.0, 3.0], "min", 2, 0.0, True),
        ([3.0, 2.0, 1.0], "min", 1, 0.0, False),
        ([0.5, 0.1, 0.1, 0.1], "max", None, 0.0, False),
        ([None, None], "max", 2, 0.0, True),
        ([None, 0.5], "max", 1, 0.0, False),
    ],
)
def test_should_stop(values: Any, mode: Any, patience: Any, min_delta: float, expected: bool) -> None:
    assert should_stop(values, mode, patience, min_delta) is expected
