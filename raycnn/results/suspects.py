"""Out-of-fold predictions, each by a network that never saw the row, and which labels they put in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.data.manifest import shown_names
from raycnn.results.evaluate import Scores
from raycnn.training.problems import Problem

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ONE_CLASS = ("single-label", "binary")
"""Tasks whose rows have one class each."""


@dataclass(frozen=True)
class HeldOut:
    """The validation rows of a fold, and what its network says of those that can be read.

    Args:
        fold: its number.
        table: the rows.
        scores: with rows_N, their places in the table.
    """

    fold: int
    table: pa.Table
    scores: Scores


def out_of_fold(folds: Sequence[HeldOut], classes: Sequence[str]) -> pa.Table:
    """One row for each that could be read, the most suspect first.

    Columns: rank (from 1), key, label (as given: a class, a list of classes, or a number), predicted (alike),
    probabilities (float32 of each class; none of a number), fold, loss (see `losses`), suspect (see
    `confidently_other`; where rows have one class each).
    """
    problem = folds[0].scores.problem
    parts = [_rows(each, classes) for each in folds]
    table = pa.concat_tables(parts)
    if problem.task in ONE_CLASS:
        probabilities_NK = np.concatenate([problem.probabilities(each.scores.outputs_NK) for each in folds])
        labels_N = np.concatenate([each.scores.targets_N.reshape(-1).astype(np.int64) for each in folds])
        table = table.append_column("suspect", pa.array(confidently_other(probabilities_NK, labels_N)))
    table = table.sort_by([("loss", "descending"), ("key", "ascending")])
    return table.add_column(0, "rank", pa.array(np.arange(1, len(table) + 1)))


def losses(problem: Problem, outputs_NK: npt.NDArray[np.float32], targets_N: npt.NDArray[Any]) -> Floats:
    """How far the network is from each row's label, float64[N].

    Of one class the negative log of its probability (self-confidence, Northcutt et al., 2021), of several classes the
    mean of that over all of them, each there or not; of a number its squared distance in standard deviations of the
    training rows' numbers. Whatever loss trained the network.
    """
    outputs = outputs_NK.astype(np.float64)
    if problem.task == "regression":
        return np.asarray((outputs[:, 0] - targets_N) ** 2)
    if problem.task == "multi-label":
        return np.asarray(np.logaddexp(0, np.where(targets_N > 0.5, -outputs, outputs)).mean(1))
    logits_NK = np.concatenate([0 * outputs, outputs], axis=1) if problem.task == "binary" else outputs
    labels_N = targets_N.reshape(-1).astype(np.int64)
    return np.asarray(np.logaddexp.reduce(logits_NK, axis=1) - logits_NK[np.arange(len(labels_N)), labels_N])


def confidently_other(probabilities_NK: Floats, labels_N: npt.NDArray[np.int64]) -> Bools:
    """Rows that confident learning counts as of another class than their label, bool[N].

    A row belongs to the most probable of the classes that have at least their threshold in it: the mean probability of
    the class over the rows that carry its label (Northcutt, Jiang and Chuang, "Confident Learning", 2021, section 3).
    So a class that the network is rarely sure of needs less, and rows that are unlike all classes are in no doubt.

    Args:
        probabilities_NK: out of fold.
        labels_N: as given.
    """
    counts_K = np.bincount(labels_N, minlength=probabilities_NK.shape[1])
    own_N = probabilities_NK[np.arange(len(labels_N)), labels_N]
    sums_K = np.bincount(labels_N, own_N, minlength=len(counts_K))
    thresholds_K = np.where(counts_K > 0, sums_K / np.maximum(counts_K, 1), np.inf)
    able_NK = np.where(probabilities_NK >= thresholds_K, probabilities_NK, -1.0)
    return np.asarray((able_NK.max(1) >= 0) & (able_NK.argmax(1) != labels_N))


def _rows(held: HeldOut, classes: Sequence[str]) -> pa.Table:
    scores, problem = held.scores, held.scores.problem
    rows = held.table.take(pa.array(scores.rows_N))
    answers = problem.answers(scores.outputs_NK, classes)
    kind = next(name for name in problem.columns if name != "probabilities")
    columns = {
        "key": shown_names(rows).combine_chunks(),
        "label": pa.array(_given(scores, rows, classes), problem.columns[kind]),
        "predicted": pa.array(answers[kind], problem.columns[kind]),
    }
    if "probabilities" in answers:
        columns["probabilities"] = pa.array(answers["probabilities"], problem.columns["probabilities"])
    columns["fold"] = pa.array(np.full(len(rows), held.fold, np.int32))
    columns["loss"] = pa.array(losses(problem, scores.outputs_NK, scores.targets_N))
    return pa.table(columns)


def _given(scores: Scores, rows: pa.Table, classes: Sequence[str]) -> list[Any]:
    """Each row's label as it was given."""
    task, targets_N = scores.problem.task, scores.targets_N
    if task == "regression":
        return list(rows["value"].to_pylist())
    if task == "multi-label":
        return [[classes[k] for k in np.flatnonzero(row > 0.5).tolist()] for row in targets_N]
    return [classes[k] for k in targets_N.reshape(-1).astype(np.int64).tolist()]


def most_suspect(table: pa.Table, limit: int) -> list[dict[str, Any]]:
    """The first rows of `out_of_fold` as they are told.

    {rank, key, label, predicted, probability, fold, loss, suspect}: probability is that of the predicted class, None
    for several classes and numbers; suspect is None for them too.
    """
    told = []
    for row in table.slice(0, limit).to_pylist():
        probabilities = row.pop("probabilities", None)
        alone = "suspect" in row
        told.append(row | {"probability": max(probabilities) if alone else None, "suspect": row.get("suspect")})
    return told


def num_suspects(table: pa.Table) -> int | None:
    """Rows that `confidently_other` names; None where there is no such thing."""
    return int(pc.sum(table["suspect"]).as_py() or 0) if "suspect" in table.column_names else None
