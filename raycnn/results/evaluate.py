"""Metrics of a checkpoint on one split, every row once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raycnn.config import Config
from raycnn.data.manifest import Index, read_index, shown_names
from raycnn.data.reader import COLUMNS
from raycnn.errors import DataError
from raycnn.results.inference import infer
from raycnn.results.statistics import bootstrap_by_group, wilson
from raycnn.storage import Store, open_store
from raycnn.training.checkpoint import Commit
from raycnn.training.metrics import Labels, Logits, classification_metrics, details
from raycnn.training.run import count_look, find_commit

INDEX_COLUMNS = (*COLUMNS, "label", "split", "group")
"""What of the manifest an evaluation needs."""

_BOOTSTRAP_WORK = 2e8  # logits looked at in all; a minute or so
_INTERVALS = ("balanced_accuracy", "macro_f1", "auroc")


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate a run's checkpoint on the rows of `evaluate.split`. Needs an initialised Ray.

    Accuracy has a Wilson interval where rows are independent; the other metrics, and accuracy where the manifest has
    groups, have percentile intervals of a bootstrap over groups.

    Returns:
        {run, step, split, rows, unreadable, metrics, per_class, confusion}; metrics holds name and name_ci95.
    """
    storage = open_store(config.run.storage)
    store = storage.child(config.run.name)
    run, commit = find_commit(store, config.evaluate.step)
    index = read_index(storage, run.index, columns=INDEX_COLUMNS)
    if config.evaluate.split == "test":
        count_look(store)
    logits_NK, labels_N, groups_N = score(config, store, commit, index)
    return {
        "run": config.run.name,
        "step": commit.step,
        "split": config.evaluate.split,
        "rows": len(labels_N),
        "unreadable": len(index.rows(config.evaluate.split)) - len(labels_N),
        "metrics": with_intervals(logits_NK, labels_N, groups_N),
        **details(logits_NK, labels_N, index.classes),
    }


def score(
    config: Config, store: Store, commit: Commit, index: Index, scorers: Sequence[Any] = ()
) -> tuple[Logits, Labels, list[str | None]]:
    """(logits_NK, labels_N, groups_N) of a checkpoint on the readable rows of `evaluate.split`, in their order.

    Args:
        config: of the run.
        store: the folder that holds the commit.
        commit: the checkpoint.
        index: with the columns INDEX_COLUMNS.
        scorers: see `infer`.

    Raises:
        DataError: no rows, or more of them unreadable than data.bad_image_budget.
    """
    table = index.rows(config.evaluate.split)
    if not len(table):
        raise DataError("the split has no rows", where=f"evaluate.split: {config.evaluate.split}", fix="choose another")
    found = list(infer(config, store, commit, index.source, table, scorers=scorers))
    reasons = np.concatenate([scored.reasons for scored in found])
    good = reasons == ""
    if (~good).mean() > config.data.bad_image_budget:
        keys = shown_names(table).to_pylist()
        bad = ", ".join(f"{keys[i]} ({reasons[i]})" for i in np.flatnonzero(~good)[:20])
        raise DataError(f"{(~good).sum()} of {len(table)} images cannot be read: {bad}", where="data.bad_image_budget")
    logits_NK = np.concatenate([scored.logits_NK for scored in found])[good]
    labels_N = table["label"].to_numpy()[good].astype(np.int64)
    groups = table["group"].to_pylist()
    return logits_NK, labels_N, [group for group, keep in zip(groups, good, strict=True) if keep]


def with_intervals(logits_NK: Any, labels_N: Any, groups_N: list[str | None]) -> dict[str, Any]:
    """classification_metrics and, for those that have one, their 95 % intervals as name_ci95: [low, high]."""
    metrics: dict[str, Any] = dict(classification_metrics(logits_NK, labels_N))
    grouped = any(group is not None for group in groups_N)
    units = [str(i) if group is None else f"group {group}" for i, group in enumerate(groups_N)]
    intervals = bootstrap_by_group(
        lambda rows: classification_metrics(logits_NK[rows], labels_N[rows]),
        np.array(units),
        num_samples=int(np.clip(_BOOTSTRAP_WORK / max(logits_NK.size, 1), 50, 1000)),
    )
    if not grouped and metrics["accuracy"] is not None:
        right = int((logits_NK.argmax(1) == labels_N).sum())
        intervals["accuracy"] = wilson(right, len(labels_N))
    for name in ("accuracy", *_INTERVALS):
        interval = intervals[name]
        metrics[f"{name}_ci95"] = list(interval) if interval else None
    return metrics
