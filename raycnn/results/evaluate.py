"""Metrics of a checkpoint on one split, every row once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from raycnn.config import Config
from raycnn.config.base import Tta
from raycnn.data.folds import read_rows
from raycnn.data.manifest import Index, shown_names
from raycnn.data.reader import COLUMNS
from raycnn.errors import DataError
from raycnn.results.inference import infer
from raycnn.results.priors import correction
from raycnn.results.statistics import bootstrap_by_group, wilson
from raycnn.storage import Store, open_store
from raycnn.training.calibration import Calibration
from raycnn.training.checkpoint import Commit
from raycnn.training.metrics import Logits
from raycnn.training.problems import Problem
from raycnn.training.run import count_look, find_commit, folder_of, read_state

INDEX_COLUMNS = (*COLUMNS, "target", "split", "group")
"""What of the manifest an evaluation needs."""

_BOOTSTRAP_WORK = 2e8  # logits looked at in all; a minute or so


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate a run's checkpoint on the rows of `evaluate.split`. Needs an initialised Ray.

    The share of rows that are right has a Wilson interval where rows are independent; the other metrics, and this one
    where the manifest has groups, have percentile intervals of a bootstrap over groups.

    Returns:
        {run, step, split, rows, unreadable, task, metrics, calibration, per_class, confusion}; metrics holds name and
        name_ci95; ece_calibrated and loss_calibrated at the temperature {temperature, thresholds} of `calibration`,
        and name_tuned at its thresholds; all others are of the plain outputs.
        Several labels have no confusion, numbers no classes either.
    """
    storage = open_store(config.run.storage)
    store = folder_of(config, storage)
    run, commit = find_commit(store, config.evaluate.step)
    index = read_rows(storage, run.index, run.identity, INDEX_COLUMNS)
    if config.evaluate.split == "test":
        count_look(store)
    scores = score(config, store, commit, index, tta=config.evaluate.tta)
    problem = scores.problem
    calibration = scores.calibration or Calibration()
    correct = correction(storage, run, problem, config.evaluate.prior, calibration)
    scores = replace(scores, outputs_NK=correct(scores.outputs_NK))
    return {
        "run": config.run.name,
        "step": commit.step,
        "split": config.evaluate.split,
        "rows": len(scores.targets_N),
        "unreadable": len(index.rows(config.evaluate.split)) - len(scores.targets_N),
        "task": problem.task,
        "metrics": with_intervals(scores),
        "calibration": scores.calibration.told(index.classes) if scores.calibration else None,
        **problem.details(scores.outputs_NK, scores.targets_N, index.classes),
    }


@dataclass(frozen=True)
class Scores:
    """What a checkpoint makes of readable rows, in their order.

    Args:
        problem: what it was trained to say, which measures outputs against targets.
        outputs_NK: float32, the network's.
        targets_N: see the problem's `targets`.
        calibration: what was chosen on the validation rows; None: nothing.
        groups_N: the group of each row, or None.
        rows_N: int64[N], which rows of the split they are; None: not told.
    """

    problem: Problem
    outputs_NK: Logits
    targets_N: npt.NDArray[Any]
    groups_N: list[str | None]
    calibration: Calibration | None = None
    rows_N: npt.NDArray[np.int64] | None = None


def score(
    config: Config, store: Store, commit: Commit, index: Index, scorers: Sequence[Any] = (), tta: Tta = "none"
) -> Scores:
    """Scores of a checkpoint on the readable rows of `evaluate.split`.

    Args:
        config: of the run.
        store: the folder that holds the commit.
        commit: the checkpoint.
        index: with the columns INDEX_COLUMNS.
        scorers, tta: see `infer`.

    Raises:
        DataError: no rows, or more of them unreadable than data.bad_image_budget.
    """
    table = index.rows(config.evaluate.split)
    if not len(table):
        raise DataError("the split has no rows", where=f"evaluate.split: {config.evaluate.split}", fix="choose another")
    found = list(infer(config, store, commit, index.source, table, scorers=scorers, tta=tta))
    reasons = np.concatenate([scored.reasons for scored in found])
    good = reasons == ""
    if (~good).mean() > config.data.bad_image_budget:
        keys = shown_names(table).to_pylist()
        bad = ", ".join(f"{keys[i]} ({reasons[i]})" for i in np.flatnonzero(~good)[:20])
        raise DataError(f"{(~good).sum()} of {len(table)} images cannot be read: {bad}", where="data.bad_image_budget")
    problem, outputs_NK = read_state(store, commit).network.problem, np.concatenate([each.logits_NK for each in found])
    told = commit.manifest.get("calibration")
    calibration = None if told is None else Calibration.of(told)
    groups = [group for group, keep in zip(table["group"].to_pylist(), good, strict=True) if keep]
    rows = np.flatnonzero(good)
    return Scores(problem, outputs_NK[good], problem.targets(table, rows), groups, calibration, rows)


def with_intervals(scores: Scores) -> dict[str, Any]:
    """The problem's metrics and, for those that have one, their 95 % intervals as name_ci95: [low, high]."""
    problem, outputs_NK, targets_N, groups_N = scores.problem, scores.outputs_NK, scores.targets_N, scores.groups_N
    metrics: dict[str, Any] = dict(problem.measure(outputs_NK, targets_N))
    grouped = any(group is not None for group in groups_N)
    units = [str(i) if group is None else f"group {group}" for i, group in enumerate(groups_N)]
    intervals = bootstrap_by_group(
        lambda rows: problem.measure(outputs_NK[rows], targets_N[rows]),
        np.array(units),
        num_samples=int(np.clip(_BOOTSTRAP_WORK / max(outputs_NK.size, 1), 50, 1000)),
    )
    right_N = problem.right(outputs_NK, targets_N)
    if not grouped and right_N is not None and problem.share and metrics[problem.share] is not None:
        intervals[problem.share] = wilson(int(right_N.sum()), len(right_N))
    for name in problem.intervals:
        interval = intervals[name]
        metrics[f"{name}_ci95"] = list(interval) if interval else None
    if scores.calibration and len(targets_N):
        metrics |= problem.measure_calibrated(outputs_NK, targets_N, scores.calibration)
    return metrics
