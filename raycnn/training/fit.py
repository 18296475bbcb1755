"""A run from the driver's side: make the first commit, run the workers, say how it went."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raycnn.config import Config
from raycnn.data.manifest import Index
from raycnn.data.plan import Plan, plan_of
from raycnn.errors import CheckpointError
from raycnn.storage import Store
from raycnn.storage.lease import Lease, LeaseRecord, read_lease
from raycnn.training import checkpoint
from raycnn.training.asked import chosen_by, settled_by
from raycnn.training.beforehand import refuse_unusable
from raycnn.training.curves import points_of, summary
from raycnn.training.groups import Show, outcome_of, run_groups
from raycnn.training.metrics import is_better, metric_mode
from raycnn.training.run import RunFacts, create_run, read_run, read_state
from raycnn.training.setup import facts_of
from raycnn.training.shown import read_lines
from raycnn.training.start import first_commit
from raycnn.training.state import TrainState


def fit(
    config: Config, store: Store, index: Index, lease: Lease, show: Show, told: RunFacts | None = None
) -> dict[str, Any]:
    """Train the run in the folder `store` to its end, from its newest checkpoint if it has one.

    Args:
        config: the run's.
        store: the run's folder.
        index: the index that the run is, or will be, pinned to.
        lease: of the run, held by this process.
        show: called several times a second with the newest progress and new log lines.
        told: facts of a search that this is part of, whose parent and teacher are its own.

    Returns:
        {run, status, epochs, steps, resumed_from, best, checkpoint, seconds, images_per_second,
        curves: [{epoch, train_loss, val_loss, gap}], advice}

    Raises:
        RaycnnError: as the run ends.
    """
    asked, (config, problem) = config, settled_by(config, index)
    facts = facts_of(config, index.classes, problem)
    if read_run(store) is None:
        refuse_unusable(config, facts, index, told)
    with asked_to_leave() as leaving:
        record = read_lease(store)
        create_run(config, store, index.hash, index.classes, told=told)
        commit = checkpoint.latest(store, record)
        if commit is None:
            _refuse_restart(store, record)
            show({}, chosen_by(config, asked))
            first_commit(config, store, record, facts, lambda line: show({}, [line]), read_run(store), index)
        plan = plan_of(config, index.rows("train"))
        outcome = _already_done(config, store, commit, plan)
        if outcome is None:
            outcome = run_groups(config, store, index.hash, lease, leaving, show)
    return _result(config, plan, outcome) | summary(points_of(read_lines(store), plan), config)


def _refuse_restart(store: Store, record: LeaseRecord) -> None:
    """CheckpointError if the run once had checkpoints: training again from step 0 must be somebody's decision."""
    fix = "restore them, or start under a new run.name"
    if any(base >= 0 for base in record.bases.values()) or read_lines(store):
        raise CheckpointError("the run's checkpoints are gone", where=f"{store.uri}/checkpoints", fix=fix)


@contextmanager
def asked_to_leave() -> Iterator[threading.Event]:
    """Inside, SIGINT and SIGTERM set the event instead of ending the process; a second one ends it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, _frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _already_done(config: Config, store: Store, commit: checkpoint.Commit | None, plan: Plan) -> dict[str, Any] | None:
    if commit is None:
        return None
    state = read_state(store, commit)
    status = state.status(config.train, plan)
    return None if status is None else outcome_of(commit, state, status)


def _result(config: Config, plan: Plan, outcome: dict[str, Any]) -> dict[str, Any]:
    state: TrainState = outcome["state"]
    best: dict[str, Any] | None = None
    metric = config.train.metric
    for evaluation in state.evaluations:
        if is_better(evaluation["metrics"][metric], best["metrics"][metric] if best else None, metric_mode(metric)):
            best = evaluation
    seconds = {phase: round(value, 3) for phase, value in outcome["seconds"].items()}
    rows = (state.step - outcome["first_step"]) * config.train.global_batch
    busy = seconds.get("data", 0) + seconds.get("compute", 0)
    return {
        "run": config.run.name,
        "status": outcome["status"],
        "epochs": round(plan.epochs(state.step), 3),
        "steps": state.step,
        "resumed_from": outcome["first_step"] or None,
        "best": best,
        "checkpoint": outcome["checkpoint"],
        "seconds": seconds,
        "images_per_second": round(rows / busy, 1) if busy else None,
    }
