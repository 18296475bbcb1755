"""A run from the driver's side: hold the lease, make the first commit, run the workers, say how it went."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raycnn.cluster import division
from raycnn.config import Config
from raycnn.data.manifest import Index
from raycnn.data.plan import Plan
from raycnn.errors import CheckpointError, DataError, NoProgressError, RaycnnError
from raycnn.scratch import scratch
from raycnn.storage import Store
from raycnn.storage.lease import Lease, LeaseRecord, acquire, read_lease
from raycnn.training import checkpoint
from raycnn.training.metrics import is_better, metric_mode
from raycnn.training.monitor import Monitor
from raycnn.training.run import create_run, first_commit, read_state
from raycnn.training.state import TrainState
from raycnn.training.worker import Job, run_rank

Show = Callable[[dict[str, Any], list[str]], None]


def hold(store: Store) -> Lease:
    """The lease of the run in the folder `store`; a context manager.

    Raises:
        RunBusyError: another job has it.
        CheckpointError: there are checkpoints and no lease.json that says which of them count.
    """

    def newest_step(record: LeaseRecord) -> int:
        if not record.epoch and checkpoint.commits(store, None):
            fix = "restore it, or start under a new run.name"
            raise CheckpointError("lease.json, which checkpoints count by, is gone", where=store.uri, fix=fix)
        return checkpoint.newest_step(store, record)

    lease = acquire(store, newest_step)
    store.sweep()
    return lease


def fit(config: Config, store: Store, index: Index, lease: Lease, show: Show) -> dict[str, Any]:
    """Train the run in the folder `store` to its end, from its newest checkpoint if it has one.

    Args:
        config: the run's.
        store: the run's folder.
        index: the index that the run is, or will be, pinned to.
        lease: of the run, held by this process.
        show: called several times a second with the newest progress and new log lines.

    Returns:
        {run, status, epochs, steps, resumed_from, best, checkpoint, seconds, images_per_second}

    Raises:
        RaycnnError: as the run ends.
    """
    require_classes(index)
    with asked_to_leave() as leaving:
        record = read_lease(store)
        create_run(config, store, index.hash, index.classes)
        commit = checkpoint.latest(store, record)
        if commit is None:
            _refuse_restart(store, record)
            first_commit(config, store, record, index.classes, lambda line: show({}, [line]))
        plan = Plan(len(index.rows("train")), config.train.global_batch, 0)
        outcome = _already_done(config, store, commit, plan)
        if outcome is None:
            outcome = _run_workers(config, index.hash, lease, leaving, show)
    return _result(config, plan, outcome)


def require_classes(index: Index) -> None:
    """DataError unless every row has one class."""
    if index.kind != "class":
        fix = "give one class per image"
        raise DataError(f"the targets are of the kind {index.kind!r}", where=f"data.source {index.source}", fix=fix)


def _refuse_restart(store: Store, record: LeaseRecord) -> None:
    """CheckpointError if the run once had checkpoints: training again from step 0 must be somebody's decision."""
    fix = "restore them, or start under a new run.name"
    if any(base >= 0 for base in record.bases.values()):
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
    if status is None:
        return None
    return {
        "status": status,
        "first_step": state.step,
        "state": state,
        "checkpoint": commit.name,
        "seconds": {},
    }


def _run_workers(config: Config, index: str, lease: Lease, leaving: threading.Event, show: Show) -> dict[str, Any]:
    """Run the worker group until it ends for good; Ray starts it again when a worker dies."""
    import ray

    started = time.perf_counter()
    monitor: Any = ray.remote(num_cpus=0)(Monitor).remote()
    died: list[BaseException] = []
    thread = threading.Thread(target=_fit_quietly, args=(config, index, lease.owner, monitor, died), daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        thread.join(0.25)
        show(*ray.get(monitor.read.remote()))
        if (leaving.is_set() or lease.lost) and not asked:
            asked = True
            monitor.ask_to_leave.remote()
    show(*ray.get(monitor.read.remote()))
    outcome: dict[str, Any] | RaycnnError | None = ray.get(monitor.outcome.remote())
    ray.kill(monitor)
    lease.check()
    if isinstance(outcome, RaycnnError):
        raise outcome
    if outcome is None:
        reason = str(died[0]) if died else "they ended without a word"
        fix = "run with --verbose to see the workers' logs"
        raise NoProgressError(f"the workers could not run: {reason}", where=config.run.name, fix=fix)
    known = sum(outcome["seconds"].values())
    outcome["seconds"]["start"] += max(0.0, time.perf_counter() - started - known)
    return outcome


def _fit_quietly(config: Config, index: str, owner: str, monitor: Any, died: list[BaseException]) -> None:
    """TorchTrainer.fit in a thread of its own, where it leaves the signal handlers alone."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cpus = division(config.train.workers)
    job = Job(config, index, owner, cpus.task, monitor)
    scaling = ScalingConfig(
        num_workers=config.train.workers, use_gpu=cpus.gpus,
        resources_per_worker={"CPU": cpus.per_rank, **({"GPU": 1} if cpus.gpus else {})},
    )  # fmt: skip
    with scratch() as folder:
        # Ray gets no checkpoint from us and a fresh name each time, so that it never resumes anything by itself;
        # how often a group may die without progress is counted in the lease.
        run = RunConfig(
            name=f"{config.run.name}-{uuid.uuid4().hex[:8]}", storage_path=folder,
            failure_config=FailureConfig(max_failures=-1),
        )  # fmt: skip
        backend = TorchConfig(backend="nccl" if cpus.gpus else "gloo", timeout_s=600)
        try:
            TorchTrainer(
                run_rank, train_loop_config={"job": job}, scaling_config=scaling, run_config=run, torch_config=backend
            ).fit()
        except Exception as error:  # whatever ends Ray's own machinery is told to the user by the main thread
            died.append(error)


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
