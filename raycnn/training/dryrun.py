"""What a run would do and need: arithmetic over the index, and two training steps measured on this machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from raycnn.cluster import division
from raycnn.config import Config, identity, load_config
from raycnn.data.folds import as_fold, fold_of
from raycnn.data.manifest import Index
from raycnn.data.plan import Plan, plan_of
from raycnn.training.asked import problem_of, settled_by
from raycnn.training.device import prepare, to_device
from raycnn.training.due import evaluation_due
from raycnn.training.learner import Learner
from raycnn.training.phases import depth_at
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, facts_of, loss_of


def dry_run(config: Config, index: Index) -> dict[str, Any]:
    """Needs an initialised Ray, for its resources; trains nothing and writes nothing.

    Returns:
        {config, rows, stages: [{name, parameters}], modules: [path], trainable_parameters, steps,
        cpus: {total, per_rank, task}, estimates: {seconds, bytes_read, peak_memory_bytes}}. modules are those that
        model.unfreeze may name. With data.resample also draws_per_epoch: {class: rows of it that an epoch trains on},
        which add up to the training rows. seconds come from a step of one rank's batch timed here, so they hold for
        machines like this one; peak memory is that of one rank. Of a cross-validation rows and draws are the first
        fold's, folds: [{fold, rows, steps}] says all of them, and steps, seconds and bytes_read are those of all
        together, as if one came after the other.

    Raises:
        ConfigError: a depth that the network does not have, workers that do not fit.
        DataError: too few rows for train.folds.
    """
    config, _ = settled_by(config, index)
    folds = range(config.train.folds) if config.train.folds and config.train.fold is None else (config.train.fold,)
    configs = [load_config(config, {"train.fold": fold}) for fold in folds]
    first, works = as_fold(index, fold_of(identity(configs[0]))), [_work(each, index) for each in configs]
    plan = works[0].plan
    learner, step_s, chunk_s = _measure(config, first, plan)
    told = [{"fold": fold, "rows": work.rows, "steps": work.steps} for fold, work in zip(folds, works, strict=True)]
    return {
        "config": config.model_dump(mode="json"),
        "rows": works[0].rows,
        **({"folds": told} if len(works) > 1 else {}),
        **({"draws_per_epoch": _draws(plan, first)} if plan.quotas else {}),
        "stages": [{"name": stage.name, "parameters": stage.parameters} for stage in learner.stages.stages],
        "modules": list(learner.stages.modules),
        "trainable_parameters": sum(p.numel() for group in learner.optimizer.param_groups for p in group["params"]),
        "steps": sum(work.steps for work in works),
        "cpus": asdict(division(config.train.workers)),
        "estimates": {
            "seconds": round(sum(work.steps * step_s + work.chunks * chunk_s for work in works), 1),
            "bytes_read": round(sum(work.bytes_read for work in works)),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
    }


@dataclass(frozen=True)
class _Work:
    """Of one run: chunks are those of its evaluations, on each rank."""

    plan: Plan
    rows: dict[str, int]
    steps: int
    chunks: int
    bytes_read: float


def _work(config: Config, index: Index) -> _Work:
    index, train = as_fold(index, fold_of(identity(config))), config.train
    rows = {split: index.rows(split) for split in ("train", "val")}
    plan = plan_of(config, rows["train"])
    total = plan.steps(train.epochs)
    evaluations = sum(evaluation_due(step, train.eval_every, plan, total) for step in range(1, total + 1))
    sizes = {split: pc.sum(table["length"]).as_py() or 0 for split, table in rows.items()}
    return _Work(
        plan=plan,
        rows={split: len(table) for split, table in rows.items()},
        steps=total,
        chunks=evaluations * -(-len(rows["val"]) // (train.chunk * train.workers)),
        bytes_read=train.epochs * sizes["train"] + evaluations * sizes["val"],
    )


def _draws(plan: Plan, index: Index) -> dict[str, int]:
    present = np.unique(index.rows("train")["label"].to_numpy())
    return {index.classes[label]: draws for label, (_, draws) in zip(present, plan.quotas, strict=True)}


def _measure(config: Config, index: Index, plan: Plan) -> tuple[Learner, float, float]:
    """A learner of one rank's size, seconds of a training step at the deepest phase, seconds of an evaluation chunk."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare(device, config.train.threads)
    facts = facts_of(config, index.classes, problem_of(config, index))
    body = Body(config, facts, device)
    learner = body.learner(config, Ranks(), loss_of(config, facts, None, device))
    batch = config.train.global_batch // config.train.workers

    def inputs(count: int) -> torch.Tensor:
        side = facts.preprocessing.image_size
        images_NHWC = to_device(np.zeros((count, side, side, 3), np.uint8), device)
        return body.prefix.taps(images_NHWC, [learner.base])[learner.base]

    some = np.zeros(batch, np.int64)
    targets = torch.from_numpy(facts.problem.targets(index.rows("train"), some)).to(device)

    def step() -> None:
        learner.backward(inputs(batch), targets, torch.ones(batch, dtype=torch.bool, device=device), batch, step=0)
        learner.step(config.optim.lr)

    learner.enter(depth_at(plan.steps(config.train.epochs), learner.unfreeze, plan))
    step_s = _seconds(step)
    with learner.evaluating() as network_of:
        chunk_s = _seconds(lambda: float(network_of(inputs(config.train.chunk)).sum()))
    return learner, step_s, chunk_s


def _seconds(work: Callable[[], Any]) -> float:
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
