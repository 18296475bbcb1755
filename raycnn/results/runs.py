"""What runs there are, from their commits alone."""

from __future__ import annotations

import json
from typing import Any

from raycnn.errors import ObjectNotFound
from raycnn.storage import Store, open_store
from raycnn.storage.lease import read_lease
from raycnn.training import checkpoint
from raycnn.training.metrics import metric_mode
from raycnn.training.run import RESULT, RunFacts, read_run


def list_runs(storage_uri: str) -> list[dict[str, Any]]:
    """[{run, status, step, metric}] below a storage folder, by name.

    status: running (its lease is held), idle (not), or empty (no checkpoint yet); step: of the newest checkpoint;
    metric: {name: value} of the best one, None without an evaluation; of a cross-validation the mean over its folds,
    once they have ended.
    """
    storage = open_store(storage_uri)
    found = []
    for name in storage.folders():
        store = storage.child(name)
        facts = read_run(store)
        if facts is not None:
            found.append(_describe(name, store, facts))
    return found


def _describe(name: str, store: Store, facts: RunFacts) -> dict[str, Any]:
    record = read_lease(store)
    status = "running" if record and not record.released else "idle"
    if facts.kind == "folds":
        return {"run": name, "status": status, "step": None, "metric": _folds(store)}
    commits = checkpoint.commits(store, record)
    metric = facts.config["train"]["metric"]
    best = checkpoint.best(commits, metric, metric_mode(metric))
    return {
        "run": name,
        "status": status if commits else "empty",
        "step": commits[0].step if commits else None,
        "metric": {metric: best.manifest["metrics"][metric]} if best else None,
    }


def _folds(store: Store) -> dict[str, Any] | None:
    try:
        result = json.loads(store.get(RESULT))
    except ObjectNotFound:
        return None
    return {result["metric"]: result["mean"][result["metric"]]}
