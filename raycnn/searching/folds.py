"""Cross-validation: each fold is a trial, side by side in packs; then what they say together."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from raycnn.cluster import resources
from raycnn.config import Config, identity, load_config
from raycnn.data.folds import as_fold, fold_of
from raycnn.data.manifest import Index
from raycnn.errors import CheckpointError, RaycnnError
from raycnn.results.evaluate import score
from raycnn.results.suspects import HeldOut, most_suspect, num_suspects, out_of_fold
from raycnn.searching.crew import full_width, num_places
from raycnn.searching.records import TrialRecord
from raycnn.searching.settings import grid_of
from raycnn.searching.trials import Trials
from raycnn.storage import Store
from raycnn.storage.lease import Lease, read_lease
from raycnn.training import checkpoint
from raycnn.training.asked import chosen_by, settled_by
from raycnn.training.groups import Show
from raycnn.training.run import RESULT, fold_folder

PREDICTIONS: Final = "predictions/out-of-fold.parquet"
SHOWN: Final = 20
"""Rows that the answer names."""


def cross_validate(config: Config, store: Store, index: Index, lease: Lease, show: Show) -> dict[str, Any]:
    """Train every fold in the run's folder `store`, from where it was interrupted. Needs an initialised Ray.

    A fold is measured after its last step on the rows that it was not trained on: to choose a step by them would
    flatter it.

    Args:
        config: with train.folds.
        store: the run's folder.
        index: the pinned index.
        lease: of the run, held by this process.
        show: called with news.

    Returns:
        {run, status, metric, rows, folds: [{fold, rows: {train, val}, unreadable, step, metrics, seconds, folder}],
        mean, sd, standard_error: {name: value}, predictions: uri of `out_of_fold`, suspects: {count: or None, rows: see
        `most_suspect`}, seconds}

    Raises:
        Preempted: asked to leave; everything is kept.
        RaycnnError: a fold failed, or as they end.
    """
    started, asked, (config, _) = time.monotonic(), config, settled_by(config, index)
    grid = _seated(grid_of(config))
    train, val = (len(index.rows(name)) for name in ("train", "val"))
    whole, told = train + val, f"the {train} training and {val} validation rows make {grid.train.folds} folds"
    show({}, [*chosen_by(config, asked), f"{config.run.name}: {told}; test rows stay aside"])

    def conclude(found: list[TrialRecord], packs: list[Any]) -> dict[str, Any]:
        show({"phase": "predicting each fold's rows"}, [])
        held = [_held_out(grid, store, index, record, packs) for record in found]
        table = out_of_fold(held, index.classes)
        store.put(PREDICTIONS, _parquet(table, index.classes, config.run.name))
        rows = [_told(each, record, store, whole) for each, record in zip(held, found, strict=True)]
        return {
            "run": config.run.name,
            "status": "finished",
            "metric": grid.train.metric,
            "rows": whole,
            "folds": rows,
            **spread([row["metrics"] for row in rows]),
            "predictions": f"{store.uri}/{PREDICTIONS}",
            "suspects": {"count": num_suspects(table), "rows": most_suspect(table, SHOWN)},
        }

    result = Trials(grid, store, index, lease, show, [], "folds").run(conclude)
    result["seconds"] = round(time.monotonic() - started, 1)
    store.put(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def _seated(grid: Config) -> Config:
    """One fold after the other in each pack: folds have no batch in common, so more at once would only take memory."""
    fitting = num_places(grid, resources()) // grid.train.workers
    packs = grid.search.packs or max(1, min(fitting, grid.train.folds or 1))
    return load_config(grid, {"search.packs": packs, "search.concurrent": packs})


def spread(metrics: Sequence[dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """{mean, sd, standard_error} of each metric over the folds; None where a fold has none.

    sd is the sample standard deviation (n - 1). Folds share most of their training rows, so the standard error of the
    mean is not sd / sqrt(k): it is sd * sqrt(1 / k + 1 / (k - 1)), the second term being the ratio of rows held out to
    rows trained on (Nadeau and Bengio, "Inference for the Generalization Error", 2003).
    """
    found: dict[str, dict[str, float | None]] = {"mean": {}, "sd": {}, "standard_error": {}}
    k = len(metrics)
    for name in metrics[0]:
        values = [value for each in metrics if (value := each[name]) is not None]
        known = len(values) == k
        sd = stdev(values) if known else None
        found["mean"][name] = fmean(values) if known else None
        found["sd"][name] = sd
        found["standard_error"][name] = None if sd is None else sd * math.sqrt(1 / k + 1 / (k - 1))
    return found


def _held_out(grid: Config, store: Store, index: Index, record: TrialRecord, packs: Sequence[Any]) -> HeldOut:
    fold = record.values["train.fold"]
    if record.status != "finished":
        what = f"fold {fold} {record.status}: {record.reason}"
        raise RaycnnError(what, where=store.uri, fix="run it again under a new run.name")
    width = full_width(grid, resources())
    config = load_config(grid, {"train.fold": fold, "evaluate.split": "val", "train.workers": width})
    folder = store.child(fold_folder(fold))
    commit = checkpoint.latest(folder, read_lease(folder))
    if commit is None:
        raise CheckpointError("the fold's checkpoint is gone", where=folder.uri, fix="run it under a new run.name")
    seen = as_fold(index, fold_of(identity(config)))
    return HeldOut(fold, seen.rows("val"), score(config, folder, commit, seen, packs))


def _told(held: HeldOut, record: TrialRecord, store: Store, whole: int) -> dict[str, Any]:
    scores, rows = held.scores, len(held.table)
    return {
        "fold": held.fold,
        "rows": {"train": whole - rows, "val": rows},
        "unreadable": rows - len(scores.targets_N),
        "step": record.evaluations[-1].step,
        "metrics": scores.problem.measure(scores.outputs_NK, scores.targets_N),
        "seconds": round(record.seconds, 1),
        "folder": f"{store.uri}/{fold_folder(held.fold)}",
    }


def _parquet(table: pa.Table, classes: Sequence[str], run: str) -> bytes:
    told = {"classes": "\n".join(classes), "run": run}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(told), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
