"""What one rank of Ray Train does: take the resume step from rank 0, restore, train, report how it ended."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from raycnn.config import Config, identity
from raycnn.data.folds import read_rows
from raycnn.errors import CheckpointError, NoProgressError, RaycnnError
from raycnn.storage import Store, open_store
from raycnn.storage.lease import LeaseRecord, begin_group
from raycnn.training import checkpoint
from raycnn.training.badrows import BadRows
from raycnn.training.checkpoint import Commit
from raycnn.training.clock import Clock
from raycnn.training.device import prepare
from raycnn.training.feed import Feed
from raycnn.training.filling import feed_of
from raycnn.training.loop import close, train
from raycnn.training.member import Member
from raycnn.training.metrics_log import decode_lines
from raycnn.training.monitor import LinesToReporter, Reporter
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder, Run
from raycnn.training.run import read_run
from raycnn.training.serialize import decode_optimizer, decode_weights
from raycnn.training.setup import INDEX_COLUMNS, Body, loss_of, task_of
from raycnn.training.state import TrainState
from raycnn.training.teaching import load_teacher
from raycnn.training.verdict import EpochTimes

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
        kind: what goes through the steps.
    """

    config: Config
    index: str
    owner: str
    task_cpus: float
    monitor: Any
    kind: type[Member] = Member


def run_rank(told: dict[str, Job]) -> None:
    """Train as one rank of the worker group. A RaycnnError ends the group as an outcome, which Ray does not retry."""
    import ray

    job = told["job"]
    logging.captureWarnings(True)
    ranks = Ranks()
    nodes = ranks.gather(ray.get_runtime_context().get_node_id())
    reporter = Reporter(job.monitor, nodes) if ranks.rank == 0 else None
    if reporter:
        logging.getLogger("raycnn").addHandler(LinesToReporter(reporter))
    outcome: dict[str, Any] | RaycnnError
    try:
        outcome = _train(job, ranks, reporter, one_node=len(set(nodes)) == 1)
    except RaycnnError as error:
        outcome = error
    if reporter:
        reporter.close()
        ray.get(job.monitor.finish.remote(outcome))


@dataclass(frozen=True)
class Start:
    """All that training needs, restored from one commit; the same on every rank but for who records."""

    commit: Commit
    member: Member
    feed: Feed
    bad_rows: BadRows


def _train(job: Job, ranks: Ranks, reporter: Reporter | None, *, one_node: bool) -> dict[str, Any]:
    config, clock = job.config, Clock()
    found: Start | RaycnnError
    with clock("start"):
        try:
            found = _start(job, ranks, clock, one_node=one_node)
        except RaycnnError as error:
            found = error
        # a rank that failed alone must not leave the others waiting for it
        ranks.raise_first(found if isinstance(found, RaycnnError) else None)
        assert isinstance(found, Start)
    commit, member = found.commit, found.member
    if reporter:
        reporter.line(f"{config.run.name}: continues from its checkpoint {commit.name}" if commit.step else "")
        reporter.progress(step=member.state.step, steps=member.total, rows=config.train.global_batch)

    def leaving() -> bool:
        return reporter is not None and reporter.leaving

    times = EpochTimes(clock)
    try:
        train([member], found.feed, ranks, found.bad_rows, reporter, clock, leaving=leaving, times=times)
    finally:
        found.feed.close()
    with clock("checkpoint"):
        failure = close(member, ranks)
    if failure:
        raise failure
    return {
        "status": member.status or "preempted",
        "first_step": commit.step,
        "state": member.state,
        "checkpoint": member.recorder.last.name if member.recorder.last else commit.name,
        "seconds": dict(clock.seconds),
        **member.findings(),
    }


def _start(job: Job, ranks: Ranks, clock: Clock, *, one_node: bool) -> Start:
    config, device = job.config, _device()
    prepare(device, config.train.threads)
    storage = open_store(config.run.storage)
    store = storage.child(config.run.name)
    resume: tuple[LeaseRecord, Commit] = ranks.from_first(_resume_point(store, job) if ranks.rank == 0 else None)
    record, commit = resume
    index = read_rows(storage, job.index, identity(config), INDEX_COLUMNS)
    files = checkpoint.verified(store, commit)
    state = TrainState.decode(files["state.json"])
    body = Body(config, state.network, device)
    body.prefix.teacher = load_teacher(config, state.network, read_run(store), device)
    learner = body.learner(config, ranks, loss_of(config, state.network, index.rows("train"), device))
    learner.restore(decode_weights(files["weights.safetensors"]), decode_optimizer(files["optimizer.pt"]))
    task = task_of(config, state.network, index, job.task_cpus, ranks.world)
    bad_rows = BadRows(task.table, len(index.manifest), len(index.quarantine), config.data.bad_image_budget)
    run = Run(store, config, record, ranks.world) if ranks.rank == 0 else None
    if run:
        run.shown.update(decode_lines(files["metrics.jsonl"]), commit.step)
    member = job.kind(learner, state, Recorder(run, commit), task, clock)
    feed = feed_of(
        config, task, body, ranks, learner.base, member.total, storage, f"{job.owner} {record.epoch}", clock,
        one_node=one_node,
    )  # fmt: skip
    return Start(commit, member, feed, bad_rows)


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
                fix="see the workers' logs (--verbose); lower train.checkpoint_every; of memory, set train.micro_batch",
            )
        return record, commit
    except RaycnnError as error:
        return error


def _device() -> torch.device:
    import ray.train.torch

    return torch.device(ray.train.torch.get_device())
