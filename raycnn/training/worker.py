"""What one rank of Ray Train does: take the resume step from rank 0, restore, train, report how it ended."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raycnn.config import Config
from raycnn.data.dataset import batches_per_block
from raycnn.data.decode import Limits
from raycnn.data.keyed import derive_seed
from raycnn.data.manifest import Index, read_index
from raycnn.data.plan import Plan
from raycnn.data.reader import COLUMNS, ImageReader
from raycnn.errors import CheckpointError, NoProgressError, RaycnnError
from raycnn.models.zoo import build
from raycnn.storage import Store, open_store
from raycnn.storage.lease import LeaseRecord, begin_group
from raycnn.training import checkpoint
from raycnn.training.badrows import BadRows
from raycnn.training.checkpoint import Commit
from raycnn.training.device import prepare
from raycnn.training.learner import Learner
from raycnn.training.loop import Clock, Task, train
from raycnn.training.losses import class_weights
from raycnn.training.monitor import LinesToReporter, Reporter
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder, Run
from raycnn.training.serialize import decode_optimizer, decode_weights
from raycnn.training.state import TrainState
from raycnn.training.validation import Validation

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """What the driver tells every rank.

    Args:
        config: the run's.
        index: hash of the pinned index.
        owner: the lease's owner, whose epoch rank 0 raises.
        task_cpus: Ray CPUs of one decoding task.
        monitor: handle of the Monitor actor.
    """

    config: Config
    index: str
    owner: str
    task_cpus: float
    monitor: Any


def run_rank(told: dict[str, Job]) -> None:
    """Train as one rank of the worker group. A RaycnnError ends the group as an outcome, which Ray does not retry."""
    import ray

    job = told["job"]
    logging.captureWarnings(True)
    ranks = Ranks()
    reporter = Reporter(job.monitor) if ranks.rank == 0 else None
    if reporter:
        logging.getLogger("raycnn").addHandler(LinesToReporter(reporter))
    outcome: dict[str, Any] | RaycnnError
    try:
        outcome = _train(job, ranks, reporter)
    except RaycnnError as error:
        outcome = error
    if reporter:
        reporter.close()
        ray.get(job.monitor.finish.remote(outcome))


@dataclass(frozen=True)
class Start:
    """All that training needs, restored from one commit; the same on every rank but for who records."""

    commit: Commit
    state: TrainState
    learner: Learner
    task: Task
    validation: Validation
    bad_rows: BadRows
    recorder: Recorder


def _train(job: Job, ranks: Ranks, reporter: Reporter | None) -> dict[str, Any]:
    config, clock = job.config, Clock()
    found: Start | RaycnnError
    with clock("start"):
        try:
            found = _start(job, ranks)
        except RaycnnError as error:
            found = error
        # a rank that failed alone must not leave the others waiting for it
        ranks.raise_first(found if isinstance(found, RaycnnError) else None)
        assert isinstance(found, Start)
    commit, state, plan = found.commit, found.state, found.task.plan
    if reporter:
        reporter.line(f"{config.run.name}: continues from its checkpoint {commit.name}" if commit.step else "")
        reporter.progress(step=state.step, steps=plan.steps(config.train.epochs), rows=plan.global_batch)
    status, state = train(
        found.learner, found.task, state, ranks, found.recorder, found.validation, found.bad_rows, reporter, clock
    )
    return {
        "status": status,
        "first_step": commit.step,
        "state": state,
        "checkpoint": found.recorder.last.name if found.recorder.last else commit.name,
        "seconds": dict(clock.seconds),
    }


def _start(job: Job, ranks: Ranks) -> Start:
    config, device = job.config, _device()
    prepare(device, config.train.threads)
    storage = open_store(config.run.storage)
    store = storage.child(config.run.name)
    resume: tuple[LeaseRecord, Commit] = ranks.from_first(_resume_point(store, job) if ranks.rank == 0 else None)
    record, commit = resume
    index = read_index(storage, job.index, columns=[*COLUMNS, "label", "split"])
    files = checkpoint.verified(store, commit)
    state = TrainState.decode(files["state.json"])
    learner = _learner(config, state, index, device, ranks.world)
    learner.restore(decode_weights(files["weights.safetensors"]), decode_optimizer(files["optimizer.pt"]))
    task, validation = _task(config, state, index, job.task_cpus, ranks.world)
    bad_rows = BadRows(task.table, len(index.manifest), len(index.quarantine), config.data.bad_image_budget)
    run = Run(store, config, record, ranks.world) if ranks.rank == 0 else None
    if run:
        run.show(files["metrics.jsonl"].decode().split("\n")[:-1], commit.step)
    return Start(commit, state, learner, task, validation, bad_rows, Recorder(run, commit))


def _resume_point(store: Store, job: Job) -> tuple[LeaseRecord, Commit] | RaycnnError:
    """Rank 0's word for the whole group: its lease epoch, and the one commit that all ranks start from."""
    try:
        record = begin_group(store, job.owner, lambda held: checkpoint.newest_step(store, held))
        commit = checkpoint.latest(store, record)
        if commit is None:
            return CheckpointError("no valid checkpoint is left", where=store.uri, fix="start under a new run.name")
        if record.attempts > MAX_ATTEMPTS:
            return NoProgressError(
                f"the workers died {MAX_ATTEMPTS} times after step {commit.step} without a new checkpoint",
                where=store.uri,
                fix="see the workers' logs (--verbose); lower train.checkpoint_every or train.global_batch (memory)",
            )
        return record, commit
    except RaycnnError as error:
        return error


def _device() -> torch.device:
    import ray.train.torch

    return torch.device(ray.train.torch.get_device())


def _learner(config: Config, state: TrainState, index: Index, device: torch.device, world: int) -> Learner:
    facts = state.network
    network = build(facts.name, len(facts.classes), seed=0, image_size=facts.preprocessing.image_size)
    weights_K = None
    if config.loss.class_weights != "none":
        counts_K = np.bincount(index.rows("train")["label"].to_numpy(), minlength=len(facts.classes))
        weights_K = torch.from_numpy(class_weights(counts_K, config.loss.class_weights)).float()
    return Learner(network, config, device, world, weights_K)


def _task(config: Config, state: TrainState, index: Index, task_cpus: float, world: int) -> tuple[Task, Validation]:
    facts = state.network
    limits = Limits(config.data.max_pixels, config.data.max_bytes)
    scan = ImageReader(index.source, facts.preprocessing, limits, config.data.fetch_threads)
    seed = derive_seed(config.train.seed, "data")
    view = ImageReader(index.source, facts.preprocessing, limits, config.data.fetch_threads, config.augment, seed)
    rows = index.rows("train")
    plan = Plan(len(rows), config.train.global_batch, seed)
    steps = batches_per_block(plan.global_batch // world, config.data.block_steps)
    return Task(plan, rows, view, task_cpus, steps), Validation(index.rows("val"), scan, task_cpus)
