"""How good outputs are that each answer by themselves: yes or no for each of several classes, or a number.

As in `raycnn.training.metrics`: all rows at once, in row order, in float64; what does not apply is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raycnn.training.metrics import Floats, Logits, area_under_roc, calibration_error, classification_metrics

Bools = npt.NDArray[np.bool_]

BINARY = (
    "accuracy", "balanced_accuracy", "f1", "macro_f1", "auroc", "average_precision", "brier", "ece", "loss",
)  # fmt: skip
MULTI_LABEL = ("map", "micro_f1", "macro_f1", "subset_accuracy", "auroc", "ece", "loss")
NUMBER = ("rmse", "mae", "r2", "loss")


def two_logits(logits_N1: Logits) -> Logits:
    """One logit for yes as two, for no and yes, of the same probabilities."""
    return np.concatenate([np.zeros_like(logits_N1), logits_N1], axis=1)


def binary_metrics(logits_N1: Logits, targets_N1: npt.NDArray[Any]) -> dict[str, float | None]:
    """All metrics of rows that have one class or not; every one is None if there is no row or a logit is not finite.

    Args:
        logits_N1: float32, of the second class.
        targets_N1: 1 where the row has the second class, else 0.

    Returns:
        as of `classification_metrics` with two classes, without top5; and of the second class
        f1: None if it occurs neither among targets nor among answers.
        average_precision: None if no row has it.
        brier: mean squared difference of its probability to the target (Brier, 1950).
    """
    true_N1 = targets_N1 > 0.5
    found = classification_metrics(two_logits(logits_N1), true_N1[:, 0].astype(np.int64))
    if found["loss"] is None:
        return dict.fromkeys(BINARY)
    scores_N1 = logits_N1.astype(np.float64)
    f1 = precision_recall_f1(logits_N1 > 0, true_N1)[2][0]
    more = {
        "f1": None if np.isnan(f1) else float(f1),
        "average_precision": average_precision(scores_N1[:, 0], true_N1[:, 0]) if true_N1.any() else None,
        "brier": float(np.mean((np.exp(-np.logaddexp(0, -scores_N1)) - true_N1) ** 2)),
    }
    return {name: (found | more)[name] for name in BINARY}


def multi_label_metrics(logits_NK: Logits, targets_NK: npt.NDArray[Any]) -> dict[str, float | None]:
    """All metrics of rows that have any of K classes; every one is None if there is no row or a logit is not finite.

    A class is taken as there where its logit is above 0.

    Args:
        logits_NK: float32, one row per image.
        targets_NK: 1 where the row has the class, else 0.

    Returns:
        map: mean over the classes that have rows of `average_precision`.
        micro_f1: F1 of all N K answers together.
        macro_f1: mean F1 of the classes that occur among targets or answers.
        subset_accuracy: share of rows with every answer right.
        auroc: mean area under the ROC curve of the classes that some rows have and some have not.
        ece: expected calibration error of the N K answers, 15 bins of equal width (Guo et al., 2017).
        loss: mean binary cross entropy over rows and classes, without weights or smoothing, in nats.
    """
    if not len(logits_NK) or not np.isfinite(logits_NK).all():
        return dict.fromkeys(MULTI_LABEL)
    true_NK, said_NK, scores_NK = targets_NK > 0.5, logits_NK > 0, logits_NK.astype(np.float64)
    present, mixed = true_NK.any(0), true_NK.any(0) & ~true_NK.all(0)
    areas = [area_under_roc(scores_NK[:, k], true_NK[:, k]) for k in np.flatnonzero(mixed)]
    _, _, f1_K = precision_recall_f1(said_NK, true_NK)
    occurs = (said_NK | true_NK).any(0)
    micro = precision_recall_f1(said_NK.reshape(-1, 1), true_NK.reshape(-1, 1))[2][0]
    sure_NK = 1 / (1 + np.exp(-np.abs(scores_NK)))
    values = (
        _mean([average_precision(scores_NK[:, k], true_NK[:, k]) for k in np.flatnonzero(present)]),
        None if np.isnan(micro) else micro,
        _mean(f1_K[occurs].tolist()),
        np.mean((said_NK == true_NK).all(1)),
        _mean(areas),
        calibration_error(sure_NK.ravel(), (said_NK == true_NK).ravel()),
        np.mean(np.logaddexp(0, np.where(true_NK, -scores_NK, scores_NK))),
    )
    return {name: None if value is None else float(value) for name, value in zip(MULTI_LABEL, values, strict=True)}


def number_metrics(values_N: Floats, targets_N: Floats, spread: float) -> dict[str, float | None]:
    """All metrics of predicted numbers; every one is None if there is no row or a number is not finite.

    Args:
        values_N: predicted.
        targets_N: true.
        spread: standard deviation of the training rows' targets.

    Returns:
        rmse, mae: root of the mean squared error, and mean absolute error, in the targets' unit.
        r2: 1 - squared errors / squared deviations from these rows' mean; None where they do not deviate.
        loss: mean squared error in units of the spread.
    """
    if not len(values_N) or not np.isfinite(values_N).all():
        return dict.fromkeys(NUMBER)
    squares, deviations = (values_N - targets_N) ** 2, (targets_N - targets_N.mean()) ** 2
    r2 = 1 - float(squares.sum() / deviations.sum()) if deviations.any() else None
    return {
        "rmse": float(np.sqrt(squares.mean())),
        "mae": float(np.abs(values_N - targets_N).mean()),
        "r2": r2,
        "loss": float(squares.mean() / spread**2),
    }


def multi_label_details(logits_NK: Logits, targets_NK: npt.NDArray[Any], classes: Sequence[str]) -> dict[str, Any]:
    """per_class: [{class, rows, precision, recall, f1, average_precision}] in class order; no cases: None."""
    true_NK, scores_NK = targets_NK > 0.5, logits_NK.astype(np.float64)
    ratios = np.stack(precision_recall_f1(logits_NK > 0, true_NK), axis=1)
    rows = []
    for k, name in enumerate(classes):
        known = {
            key: None if np.isnan(x) else float(x)
            for key, x in zip(("precision", "recall", "f1"), ratios[k], strict=True)
        }
        average = average_precision(scores_NK[:, k], true_NK[:, k]) if true_NK[:, k].any() else None
        rows.append({"class": name, "rows": int(true_NK[:, k].sum()), **known, "average_precision": average})
    return {"per_class": rows}


def average_precision(scores_N: Floats, positive_N: Bools) -> float:
    """Precision at every score, weighted by the gain in recall there; equal scores count at once.

    The step-wise area under the precision-recall curve, as scikit-learn has it. There must be a positive.
    """
    order = np.argsort(-scores_N, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True))
    right = np.cumsum(positive_N[order])[ends].astype(np.float64)
    return float(np.sum(np.diff(right, prepend=0) * right / (ends + 1)) / positive_N.sum())


def precision_recall_f1(said_NK: Bools, true_NK: Bools) -> tuple[Floats, Floats, Floats]:
    """Of each class, float64[K]; NaN where there is nothing to divide by."""
    right_K = (said_NK & true_NK).sum(0).astype(np.float64)
    said_K, true_K = said_NK.sum(0), true_NK.sum(0)
    with np.errstate(invalid="ignore"):
        return right_K / said_K, right_K / true_K, 2 * right_K / (said_K + true_K)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
