"""How good predictions are: metrics of all rows at once, in row order, in float64.

The same rows in the same order give the same bits, whatever number of workers computed the logits.
A number that does not apply is None, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer[Any]]
Mode = Literal["max", "min"]

NAMES = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "auroc", "ece", "loss")
_ECE_BINS = 15


def classification_metrics(logits_NK: Logits, labels_N: Labels) -> dict[str, float | None]:
    """All metrics of a set of rows; every one is None if there is no row or a logit is not finite.

    Ties go to the class that comes first, as in argmax.

    Args:
        logits_NK: float32, one row per image.
        labels_N: the true classes, in [0, K).

    Returns:
        accuracy: share of rows whose largest logit is the label's.
        top5: share of rows whose label is among the five largest logits; None if K <= 5.
        balanced_accuracy: mean recall of the classes that have rows.
        macro_f1: mean F1 of the classes that occur among labels or predictions.
        auroc: area under the ROC curve; of class 1 if K is 2, else the mean of one against the rest over the
            classes that have rows; None if fewer than two have.
        ece: expected calibration error of the largest probability, 15 bins of equal width (Guo et al., 2017).
        loss: mean cross entropy, without weights or smoothing, in nats.
    """
    num_rows, num_classes = logits_NK.shape
    if num_rows == 0 or not np.isfinite(logits_NK).all():
        return dict.fromkeys(NAMES)
    confusion_KK = confusion_matrix(logits_NK, labels_N)
    _, recall_K, f1_K = precision_recall_f1(confusion_KK)
    label_logits_N = logits_NK[np.arange(num_rows), labels_N].astype(np.float64)
    log_sums_N = _log_sum_exp(logits_NK)
    top5 = np.mean(_ranks(logits_NK, labels_N) < 5) if num_classes > 5 else None
    values = (
        np.trace(confusion_KK) / num_rows,
        top5,
        np.nanmean(recall_K),
        np.nanmean(f1_K),
        _auroc(logits_NK, labels_N, log_sums_N),
        _calibration_error(logits_NK, labels_N, log_sums_N),
        np.mean(log_sums_N - label_logits_N),
    )
    return {name: None if value is None else float(value) for name, value in zip(NAMES, values, strict=True)}


def details(logits_NK: Logits, labels_N: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """The metrics class by class.

    Returns:
        per_class: [{class, rows, precision, recall, f1}] in class order; a ratio without cases is None.
        confusion: K lists of K counts; the row is the label, the column the prediction.
    """
    confusion_KK = confusion_matrix(logits_NK, labels_N)
    ratios = np.stack(precision_recall_f1(confusion_KK), axis=1)
    per_class = [
        {"class": name, "rows": int(rows)}
        | {key: None if np.isnan(x) else float(x) for key, x in zip(("precision", "recall", "f1"), row, strict=True)}
        for name, rows, row in zip(classes, confusion_KK.sum(axis=1), ratios, strict=True)
    ]
    return {"per_class": per_class, "confusion": confusion_KK.tolist()}


def confusion_matrix(logits_NK: Logits, labels_N: Labels) -> npt.NDArray[np.int64]:
    """Counts of (label, prediction), int64[K, K]."""
    num_classes = logits_NK.shape[1]
    pairs = labels_N.astype(np.int64) * num_classes + logits_NK.argmax(axis=1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def precision_recall_f1(confusion_KK: npt.NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of each class, float64[K]; NaN where there is nothing to divide by."""
    right_K = confusion_KK.diagonal().astype(np.float64)
    rows_K, predicted_K = confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return right_K / predicted_K, right_K / rows_K, 2 * right_K / (rows_K + predicted_K)


def metric_mode(name: str) -> Mode:
    """Whether more or less of a metric is better."""
    return "min" if name in ("loss", "ece", "brier", "rmse", "mae") else "max"


def is_better(value: float | None, best: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether `value` beats `best` by more than `min_delta`; any number beats None, None beats nothing."""
    if value is None or best is None:
        return value is not None
    return value - best > min_delta if mode == "max" else best - value > min_delta


def should_stop(values: Sequence[float | None], mode: Mode, patience: int | None, min_delta: float = 0.0) -> bool:
    """Early stopping: whether the last `patience` evaluations all failed to beat the best before them.

    Args:
        values: the metric at every evaluation so far, oldest first.
        mode: whether more or less is better.
        patience: evaluations to wait; None never stops.
        min_delta: smallest change that counts as better.
    """
    best, waited = None, 0
    for value in values:
        if is_better(value, best, mode, min_delta):
            best, waited = value, 0
        else:
            waited += 1
    return patience is not None and waited >= patience


def _log_sum_exp(logits_NK: Logits) -> Floats:
    largest_N1 = logits_NK.max(axis=1, keepdims=True).astype(np.float64)
    return np.asarray(np.log(np.exp(logits_NK - largest_N1).sum(axis=1)) + largest_N1[:, 0])


def _ranks(logits_NK: Logits, labels_N: Labels) -> npt.NDArray[np.int64]:
    """How many classes come before the label, with argmax's rule for ties."""
    own_N1 = np.take_along_axis(logits_NK, labels_N[:, None], axis=1)
    earlier_NK = np.arange(logits_NK.shape[1]) < labels_N[:, None]
    return np.asarray(((logits_NK > own_N1) | ((logits_NK == own_N1) & earlier_NK)).sum(axis=1))


def _auroc(logits_NK: Logits, labels_N: Labels, log_sums_N: Floats) -> float | None:
    num_classes = logits_NK.shape[1]
    present = np.unique(labels_N)
    if len(present) < 2:
        return None
    if num_classes == 2:  # the margin orders rows as the probability does, and does not saturate
        return area_under_roc(logits_NK[:, 1].astype(np.float64) - logits_NK[:, 0], labels_N == 1)
    areas = [area_under_roc(np.exp(logits_NK[:, k] - log_sums_N), labels_N == k) for k in present]
    return float(np.mean(areas))


def area_under_roc(scores_N: Floats, positive_N: npt.NDArray[np.bool_]) -> float:
    """P(score of a positive > score of a negative), ties counted half (Mann and Whitney, 1947)."""
    negatives = np.sort(scores_N[~positive_N])
    positives = scores_N[positive_N]
    below = np.searchsorted(negatives, positives, "left").sum()
    not_above = np.searchsorted(negatives, positives, "right").sum()
    return float((below + not_above) / (2 * len(negatives) * len(positives)))


def _calibration_error(logits_NK: Logits, labels_N: Labels, log_sums_N: Floats) -> float:
    confidence_N = np.exp(logits_NK.max(axis=1) - log_sums_N)
    return calibration_error(confidence_N, logits_NK.argmax(axis=1) == labels_N)


def calibration_error(confidence_N: Floats, right_N: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error: confidences against the share that is right, 15 bins of equal width."""
    bins_N = np.clip(np.ceil(confidence_N * _ECE_BINS).astype(np.int64) - 1, 0, _ECE_BINS - 1)
    gaps = np.bincount(bins_N, weights=right_N - confidence_N, minlength=_ECE_BINS)
    return float(np.abs(gaps).sum() / len(right_N))
