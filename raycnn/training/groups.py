"""Worker groups, one after another, until one ends for good: what the driver does while ranks and nodes come and go.

Each group is a TorchTrainer of its own that may not restart anything by itself: what a group needs is divided anew
among the nodes that are there, and how often groups die without progress is counted in the lease.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from raycnn.cluster import CpuDivision, divide_cpus, division, resources
from raycnn.config import Config
from raycnn.errors import ConfigError, NoProgressError, RaycnnError
from raycnn.scratch import scratch
from raycnn.storage import Store
from raycnn.storage.lease import Lease, read_lease
from raycnn.training import checkpoint
from raycnn.training.member import Member
from raycnn.training.monitor import Monitor
from raycnn.training.run import read_state
from raycnn.training.state import TrainState
from raycnn.training.worker import MAX_ATTEMPTS, Job, run_rank

Show = Callable[[dict[str, Any], list[str]], None]

_SAY_EVERY_S = 60.0


def run_groups(
    config: Config, store: Store, index: str, lease: Lease, leaving: threading.Event, show: Show,
    kind: type[Member] = Member,
) -> dict[str, Any]:  # fmt: skip
    """Train until the run ends, or until it is asked to leave; a rank or a node that is lost costs a new group.

    Returns:
        `outcome_of` the last commit, with the seconds by phase of the last group.

    Raises:
        RaycnnError: as the run ends.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    started = time.perf_counter()
    # on this process's node: all others may be lost
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor: Any = ray.remote(num_cpus=0)(Monitor).options(scheduling_strategy=here).remote()
    gpus, fruitless = division(config.train.workers).gpus, 0
    try:
        while cpus := _wait_for_places(config, gpus, leaving, show):
            epoch = read_lease(store).epoch
            error = _run_group(Job(config, index, lease.owner, cpus.task, monitor, kind), cpus, lease, leaving, show)
            outcome: dict[str, Any] | RaycnnError | None = ray.get(monitor.outcome.remote())
            lease.check()
            if isinstance(outcome, RaycnnError):
                raise outcome
            if outcome and (outcome["status"] != "preempted" or leaving.is_set()):
                known = sum(outcome["seconds"].values())
                outcome["seconds"]["start"] += max(0.0, time.perf_counter() - started - known)
                return outcome
            begun = read_lease(store).epoch > epoch
            fruitless = 0 if begun or _no_place(error) else fruitless + 1
            if fruitless == MAX_ATTEMPTS:
                fix = "run with --verbose to see the workers' logs"
                raise NoProgressError(f"the workers could not run: {error}", where=config.run.name, fix=fix)
            show({}, [f"{config.run.name}: {_why(outcome, error)}; going on from the newest checkpoint"])
    finally:
        ray.kill(monitor)
    commit = checkpoint.latest(store, read_lease(store))
    assert commit is not None  # there is one before any group starts
    return outcome_of(commit, read_state(store, commit), "preempted")


def outcome_of(commit: checkpoint.Commit, state: TrainState, status: str) -> dict[str, Any]:
    """How a run stands at a commit when nobody trains: {status, first_step, state, checkpoint, seconds}."""
    return {"status": status, "first_step": state.step, "state": state, "checkpoint": commit.name, "seconds": {}}


def _wait_for_places(config: Config, gpus: bool, leaving: threading.Event, show: Show) -> CpuDivision | None:
    """How the nodes that are there now are divided, as soon as they suffice; None if asked to leave before that."""
    said = -_SAY_EVERY_S
    while not leaving.is_set():
        if cpus := places(resources(), config.train.workers, gpus):
            return cpus
        if time.monotonic() - said >= _SAY_EVERY_S:
            said = time.monotonic()
            what = (
                f"{config.train.workers} workers {'with a GPU each ' if gpus else ''}do not fit on the nodes there are"
            )
            show({}, [f"{config.run.name}: waiting, since {what}"])
        leaving.wait(1.0)
    return None


def places(found: dict[str, float], workers: int, gpus: bool) -> CpuDivision | None:
    """How these resources are divided; None if they do not suffice. A run that began on GPUs stays on GPUs."""
    if gpus and found.get("GPU", 0) < workers:
        return None
    try:
        return divide_cpus(found.get("CPU", 0), workers, gpus=gpus)
    except ConfigError:
        return None


def _run_group(job: Job, cpus: CpuDivision, lease: Lease, leaving: threading.Event, show: Show) -> BaseException | None:
    """Run one worker group to its end, showing its progress; the error that Ray ended it with, if one did."""
    import ray

    died: list[BaseException] = []
    ray.get(job.monitor.begin.remote())
    thread = threading.Thread(target=_fit_quietly, args=(job, cpus, died), daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        thread.join(0.25)
        show(*ray.get(job.monitor.read.remote()))
        if (leaving.is_set() or lease.lost) and not asked:
            asked = True
            job.monitor.ask_to_leave.remote()
    show(*ray.get(job.monitor.read.remote()))
    return died[0] if died else None


def _fit_quietly(job: Job, cpus: CpuDivision, died: list[BaseException]) -> None:
    """TorchTrainer.fit in a thread of its own, where it leaves the signal handlers alone."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    scaling = ScalingConfig(
        num_workers=job.config.train.workers, use_gpu=cpus.gpus,
        resources_per_worker={"CPU": cpus.per_rank, **({"GPU": 1} if cpus.gpus else {})},
    )  # fmt: skip
    with scratch() as folder:
        # Ray gets no checkpoint from us and a fresh name each time, so that it never resumes anything by itself
        run = RunConfig(
            name=f"{job.config.run.name}-{uuid.uuid4().hex[:8]}", storage_path=folder,
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        )  # fmt: skip
        backend = _process_group(backend="nccl" if cpus.gpus else "gloo", timeout_s=600)
        try:
            TorchTrainer(
                run_rank, train_loop_config={"job": job}, scaling_config=scaling, run_config=run, torch_config=backend
            ).fit()
        except Exception as error:  # whatever ends Ray's own machinery is told to the user by the main thread
            died.append(error)


def _process_group(**settings: Any) -> Any:
    """A TorchConfig whose process groups end with their processes.

    Ray asks every rank to leave its group before it kills it, and waits 30 s for one that hangs.
    """
    from ray.train.torch.config import TorchConfig, _TorchBackend

    class Backend(_TorchBackend):
        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            pass

    class ProcessGroup(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return ProcessGroup(**settings)


def _no_place(error: BaseException | None) -> bool:
    """Whether Ray found no place for the ranks in time: others use the nodes."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _why(outcome: dict[str, Any] | None, error: BaseException | None) -> str:
    if outcome:
        return "a node will be taken away"
    return "found no free place for the workers in time" if _no_place(error) else "a worker was lost"
