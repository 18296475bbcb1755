"""What a search is: its settings, checked, and pinned when it first starts: they do not change under its trials.

Without torch: whoever is refused, or asks for what has ended, need not wait for it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from raycnn.config import Config, load_config
from raycnn.data.manifest import Index
from raycnn.errors import CheckpointError, ConfigError, ObjectNotFound, PreconditionFailed
from raycnn.searching.answer import goal
from raycnn.searching.space import check
from raycnn.storage import Store
from raycnn.training.run import RESULT, RunFacts

_PLAN: Final = "search/search.json"
_PINNED: Final = ("space", "searcher", "scheduler", "seed", "metric", "mode", "reduction", "grace", "compare")


def settings_of(config: Config) -> Config:
    """The config whose trials are compared by train.metric; unless one is set, the index will tell which it is.

    Raises:
        ConfigError: a search that cannot run.
    """
    chosen = config.search.metric or ("metric" in config.train.model_fields_set and config.train.metric)
    if chosen:
        config = load_config(config, {"train.metric": chosen})
        check_goal(config)
    check(config)
    if config.train.folds and config.train.fold is None:
        fix = "leave it out, or name the train.fold whose rows the search is to be made on"
        raise ConfigError("a search does not run folds", where="train.folds", fix=fix)
    if config.search.refit and config.train.patience:
        fix = "leave it out, or set search.refit: false"
        raise ConfigError("a refit has no validation rows to stop early by", where="train.patience", fix=fix)
    if config.search.refit and "plateau" in _schedules(config):
        fix = "use another schedule, or set search.refit: false"
        raise ConfigError("a refit has no validation rows to see a plateau on", where="optim.schedule", fix=fix)
    return config


def check_goal(config: Config) -> None:
    """ConfigError if the worse is searched for."""
    metric, mode = goal(config)
    natural = goal(load_config(config, {"search.mode": None}))[1]
    if mode != natural:
        raise ConfigError(f"{mode} of {metric} is no goal", where="search.mode", fix=f"use {natural}, or leave it out")


def check_rows(index: Index) -> None:
    """ConfigError if there is nothing to choose by."""
    if not len(index.rows("val")):
        fix = "set data.val_fraction above 0"
        raise ConfigError("a search chooses by validation rows, and there are none", where="data.val_fraction", fix=fix)


def _schedules(config: Config) -> set[str]:
    found = config.search.space.get("optim.schedule")
    return {config.optim.schedule, *((found.choice or found.grid or ()) if found else ())}


def ended_result(config: Config, store: Store) -> dict[str, Any] | None:
    """What a search that has ended found; None while it has not. CheckpointError if it was another search."""
    try:
        result: dict[str, Any] = json.loads(store.get(RESULT))
    except ObjectNotFound:
        return None
    pin(store, config)
    return result


def pin(store: Store, config: Config) -> None:
    """Keep what the search is; CheckpointError with the differing settings if it was started with others."""
    tree = config.search.model_dump(mode="json", include=set(_PINNED), exclude_none=True)
    try:
        store.put(_PLAN, json.dumps(tree, indent=1, sort_keys=True).encode(), create_only=True)
    except PreconditionFailed:
        before = json.loads(store.get(_PLAN))
        keys = sorted(key for key in tree.keys() | before.keys() if tree.get(key) != before.get(key))
        if keys:
            told = "; ".join(
                f"search.{key}: {json.dumps(before.get(key))} -> {json.dumps(tree.get(key))}" for key in keys
            )
            raise CheckpointError(
                f"the search was started with other settings: {told}",
                where=store.uri,
                fix="restore them, or choose a new run.name",
            ) from None


def grid_of(config: Config) -> Config:
    """The config of a search over train.folds: every fold to its end, and nothing chosen."""
    kept = "share" if config.train.reuse in ("none", "bytes") else "auto"
    space = {"train.fold": {"grid": list(range(config.train.folds or 0))}}
    search = {"space": space, "confirm": [0, 0], "reuse": kept, "packs": config.search.packs}
    return load_config(config, {"search": search})


def ended_folds(config: Config, store: Store, facts: RunFacts | None) -> dict[str, Any] | None:
    """What a cross-validation that has ended found; None while it has not.

    Raises:
        CheckpointError: it was started for another number of epochs.
    """
    if facts is None:
        return None
    then, now = facts.config["train"]["epochs"], config.train.epochs
    if then != now:
        fix = "restore them, or choose a new run.name"
        raise CheckpointError(f"the folds were started for other epochs: {then:g} -> {now:g}", where=store.uri, fix=fix)
    return ended_result(grid_of(config), store)
