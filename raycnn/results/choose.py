"""Which network to fine-tune, and how deep: heads on the frozen features of several, at all their cuts, in one pass."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from raycnn.cluster import division
from raycnn.config import Config, load_config
from raycnn.data.folds import assign
from raycnn.data.manifest import Index
from raycnn.errors import DataError
from raycnn.results.choice import Cut, as_json, choose_depths, choose_network, front
from raycnn.results.choice_report import draw
from raycnn.results.costs import Costs, measure
from raycnn.results.extract import Extracted, Frozen, extract, gather, of_start, sample
from raycnn.results.linear import fit_chosen
from raycnn.storage import Store
from raycnn.training.asked import settled_by
from raycnn.training.metrics import Mode, metric_mode
from raycnn.training.problems import Problem

FOLDER: Final = "choose"
_INNER: Final = 5
_FASTER: Final = 10  # the learning rate is searched from a tenth of optim.lr to ten times as much

Show = Callable[[dict[str, Any], list[str]], None]


def choose(config: Config, store: Store, index: Index, show: Show) -> dict[str, Any]:
    """See verbs.choose. Needs an initialised Ray; writes below choose/ of the run's folder alone.

    Raises:
        ConfigError, CheckpointError, StorageError: of a network or its weights.
        DataError: more images unreadable than data.bad_image_budget.
    """
    start, (config, problem) = time.perf_counter(), settled_by(config, index)
    candidates = _candidates(config)
    networks = [of_start(each, index, lambda line: show({}, [line])) for each in candidates]
    train = index.rows("train")
    table = sample(pa.concat_tables([train, index.rows("val")]), config.choose.rows)

    def on(rows: int) -> None:
        show({"phase": f"features of {len(networks)} networks: {rows} of {len(table)} images"}, [])

    found = gather(extract(config, networks, index.source, table), on)
    found, table = _readable(found, table, config)
    show({"phase": "heads"}, [])
    scores = _scores(config, found, table, index, problem)
    show({"phase": "costs"}, [])
    costs = _costs(config, networks)
    cuts = [
        Cut(n, depth, found.features[n][depth].shape[1], scores[n, depth], *costs[n].of(depth))
        for n, each in enumerate(networks)
        for depth in each.depths
        if isinstance(depth, int)
    ]
    told = _told(config, candidates, costs, cuts, rows=len(train))
    told |= {"rows": len(table), "folds": config.choose.folds, "unreadable": int((found.reasons != "").sum())}
    picture = draw(told)
    if picture:
        store.put(f"{FOLDER}/cuts.png", picture)
    store.put(f"{FOLDER}/result.json", json.dumps(told, indent=1).encode())
    store.put(f"{FOLDER}/search.yaml", told["yaml"].encode())
    plot = f"{store.uri}/{FOLDER}/cuts.png" if picture else None
    return told | {"plot": plot, "seconds": round(time.perf_counter() - start, 1)}


def _candidates(config: Config) -> list[Config]:
    """The config with each of the networks; with its own if none is named."""
    if not config.choose.networks:
        return [config]
    changes = [
        {"model.name": each.name, "model.weights": each.weights, "model.weights_sha256": None}
        for each in config.choose.networks
    ]
    return [load_config(config, each) for each in changes]


def _readable(found: Extracted, table: pa.Table, config: Config) -> tuple[Extracted, pa.Table]:
    """The rows that could be read, and `found` with the features of these alone."""
    good = found.reasons == ""
    if (~good).mean() > config.data.bad_image_budget:
        what = f"{(~good).sum()} of {len(good)} images cannot be read"
        raise DataError(what, where="data.bad_image_budget", fix="run `raycnn index` again")
    features = [{depth: values[good] for depth, values in each.items()} for each in found.features]
    return Extracted(found.rows, found.reasons, features), table.filter(pa.array(good))


def _scores(
    config: Config, found: Extracted, table: pa.Table, index: Index, problem: Problem
) -> dict[Any, tuple[float | None, ...]]:
    """The metric on each fold of a head at each cut, by (network, depth); a task for each cut."""
    import ray

    folds, seed = config.choose.folds, config.data.split_seed
    numbers_N = assign(table, index.kind, folds, seed)
    held_FN = np.zeros((folds, len(table)), bool)
    for number in range(folds):
        rest = np.flatnonzero(numbers_N != number)
        inner = assign(table.take(pa.array(rest)), index.kind, _INNER, seed)
        held_FN[number, rest[inner == 0]] = True
    targets_N = problem.targets(table, np.arange(len(table)))
    shared = ray.put((targets_N, numbers_N, held_FN, problem, problem.num_outputs(index.classes), config.train.metric))
    task = ray.remote(num_cpus=min(1.0, division(1).total))(fold_scores)
    pending = {
        (n, depth): task.remote(ray.put(values_NF), shared)
        for n, each in enumerate(found.features)
        for depth, values_NF in each.items()
    }
    return {key: ray.get(reference) for key, reference in pending.items()}


def fold_scores(features_NF: npt.NDArray[np.float32], about: tuple[Any, ...]) -> tuple[float | None, ...]:
    """The metric on the rows of each fold, of a head that was fitted to all others and has not seen them."""
    targets_N, numbers_N, held_FN, problem, num_outputs, metric = about
    found = []
    for number, held_N in enumerate(held_FN):
        out_N = numbers_N == number
        rest_N = ~out_N
        head = fit_chosen(features_NF[rest_N], targets_N[rest_N], held_N[rest_N], problem.task, num_outputs)
        found.append(problem.measure(head(features_NF[out_N]), targets_N[out_N])[metric])
    return tuple(found)


def _costs(config: Config, networks: Sequence[Frozen]) -> list[Costs]:
    """Measured by one worker, while nothing else here computes."""
    import ray

    cpus = division(config.train.workers)
    task = ray.remote(num_cpus=cpus.per_rank, num_gpus=1 if cpus.gpus else 0)(measure)
    settings = load_config(config, {"train.compile": "none"})
    found: list[Costs] = ray.get(task.remote(settings, [each.facts for each in networks]))
    return found


def _told(
    config: Config, candidates: Sequence[Config], costs: Sequence[Costs], cuts: Sequence[Cut], rows: int
) -> dict[str, Any]:
    """The result: all cuts, and what follows from them."""
    metric = config.train.metric
    mode: Mode = metric_mode(metric)
    chosen = choose_network(cuts, mode)
    model, own = candidates[chosen].model, [cut for cut in cuts if cut.network == chosen]
    depths: list[int | str] = list(choose_depths(own, mode, rows))
    seconds = [rows * cut.train_ms / 1000 / config.train.workers for cut in own if cut.depth in depths]
    if len(depths) > 1 and depths[-1] == max(cut.depth for cut in own):
        depths[-1] = "all"
    lrs = [config.optim.lr / _FASTER, config.optim.lr * _FASTER]
    space = {"model.unfreeze": {"grid": depths}, "optim.lr": {"loguniform": [float(f"{lr:.3g}") for lr in lrs]}}
    fragment = {"model": {"name": model.name, "weights": model.weights}, "search": {"space": space}}
    names = {"network": model.name, "weights": model.weights}
    return {
        "run": config.run.name,
        "metric": metric,
        "networks": [
            {"network": each.model.name, "weights": each.model.weights, **cost.as_json()}
            for each, cost in zip(candidates, costs, strict=True)
        ],
        "cuts": [
            {"network": candidates[cut.network].model.name, "weights": candidates[cut.network].model.weights}
            | as_json(cut, is_front)
            for cut, is_front in zip(cuts, front(cuts, mode), strict=True)
        ],
        "recommended": names | {"depths": depths, "epoch_seconds": [round(s, 1) for s in (min(seconds), max(seconds))]},
        "training_rows": rows,
        "yaml": yaml.safe_dump(fragment, sort_keys=False, default_flow_style=None),
    }
