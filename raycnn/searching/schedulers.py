"""Who goes on: Ray Tune's schedulers over our trials, rebuilt after a restart from our own records.

A result holds "evaluation" (1, 2, ...), "objective" (finite), "depth", "seconds" and "done"; a trial's Tune config
holds "id", "pack" and "values" by dotted path.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from raycnn.config import Distribution, SearchConfig
from raycnn.data.keyed import derive_seed
from raycnn.errors import ConfigError
from raycnn.searching.halving import Halving
from raycnn.searching.records import TrialRecord
from raycnn.searching.space import options
from raycnn.training.metrics import Mode

_OBJECTIVE: Final = "objective"
_SHORTEST_S, _LONGEST_S = 1e-3, 1e8


def build(
    search: SearchConfig, metric: str, mode: Mode, num_evaluations: int, history: Sequence[TrialRecord] = ()
) -> TrialScheduler:
    """The scheduler that the search asks for, as if it had seen the trials of `history`.

    It knows what to compare by itself: `tune.TuneConfig` gets no metric and no mode.

    Args:
        search: the settings of the search.
        metric: of the records' metrics, the one that results call "objective".
        mode: whether more or less of it is better.
        num_evaluations: evaluations of a trial that nobody stops.
        history: the trials of this search so far, whatever their status.

    Raises:
        ConfigError: search.grace leaves no evaluation to act at.
    """
    if search.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    if search.grace >= num_evaluations:
        raise ConfigError(
            f"{search.scheduler} never acts: a trial has {num_evaluations} evaluations",
            where="search.grace",
            fix="lower it, or raise train.epochs, or lower train.eval_every, or search.scheduler: none",
        )
    history = [record for record in history if record.stage == "search"]
    if search.scheduler == "pbt":
        return Population(search, mode, history)
    if search.compare == "depth":
        return Halving(search, metric, mode, num_evaluations, history)
    by_seconds = HalvingBySeconds(search, mode)
    for record in history:
        by_seconds.replay(record, metric)
    return by_seconds


class HalvingBySeconds(FIFOScheduler):
    """Asynchronous successive halving by Ray's AsyncHyperBandScheduler, at equal seconds: stops losers on arrival.

    All trials share rungs at the powers of `reduction` in seconds of their own cost, whatever their depth; a trial
    counts on a rung with its first evaluation at or after it, from its evaluation number `grace` on. Fixed rungs need
    no measured speed, which would differ after a restart; where an evaluation of a deep trial costs more than several
    rungs, it is compared on the last of them alone. A finished trial counts on all later rungs with its last value:
    more seconds would not change it, and a dearer trial has to beat what it gave for less.

    It does not pause and promote as `Halving` does, because a deep trial passes over the rungs of cheap ones, which
    would wait there for trials that never come.
    """

    def __init__(self, search: SearchConfig, mode: Mode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = _OBJECTIVE
        self._search = search
        self._seconds = _powers(search.reduction)
        first: Any = self._seconds[0]  # Ray types seconds as whole numbers
        last: Any = self._seconds[-1]
        self._rungs: Any = AsyncHyperBandScheduler(
            time_attr="seconds",
            metric=_OBJECTIVE,
            mode=mode,
            grace_period=first,
            max_t=last,
            reduction_factor=search.reduction,
            stop_last_trials=False,  # each rung judges a trial once; trials end by themselves
        )
        self._stopped: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        name = trial.config["id"]
        action = self._see(name, result)
        if action == self.STOP:
            self._stopped.add(name)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Takes the last result of a trial that finished by itself: Tune shows it nowhere else."""
        if trial.config["id"] not in self._stopped:
            self._finish(trial.config["id"], result)

    def replay(self, record: TrialRecord, metric: str) -> None:
        """Enters a trial of before on its rungs. The order of trials makes no difference to later decisions."""
        result: dict[str, Any] = {}
        for number, evaluation in enumerate(record.evaluations, start=1):
            if (value := evaluation.metrics[metric]) is not None:
                result = {"evaluation": number, "seconds": evaluation.seconds, _OBJECTIVE: value}
                self._see(record.id, result)
        if record.status == "finished" and result:
            self._finish(record.id, result)

    def _see(self, name: str, result: dict[str, Any]) -> str:
        if _OBJECTIVE not in result or result["evaluation"] < self._search.grace:
            return str(self.CONTINUE)
        trial: Any = SimpleNamespace(trial_id=name)  # ours: it is the same after a restart
        self._rungs.on_trial_add(None, trial)
        return str(self._rungs.on_trial_result(None, trial, result))

    def _finish(self, name: str, result: dict[str, Any]) -> None:
        self._see(name, result)
        if _OBJECTIVE in result:
            for seconds in self._seconds:
                if seconds > result["seconds"]:
                    self._see(name, {**result, "seconds": seconds})


def _powers(reduction: int) -> list[float]:
    lowest, highest = (round(np.log(limit) / np.log(reduction)) for limit in (_SHORTEST_S, _LONGEST_S))
    return [float(reduction) ** power for power in range(lowest, highest + 1)]


class Population(PopulationBasedTraining):
    """Population based training (Jaderberg et al., 2017) by Ray, in step: every `grace` evaluations all trials wait for
    each other, then the worst quarter takes over the checkpoints of the best and changes its settings.

    In step, because trials of a pack share their images, and because decisions then depend on values alone, not on who
    came first. After a restart the population goes on from the next such evaluation that no trial has passed.
    """

    def __init__(self, search: SearchConfig, mode: Mode, history: Sequence[TrialRecord] = ()) -> None:
        super().__init__(
            time_attr="evaluation",
            metric=_OBJECTIVE,
            mode=mode,
            perturbation_interval=search.grace,
            hyperparam_mutations={"values": {path: _mutation(each) for path, each in search.space.items()}},
            quantile_fraction=0.25,
            log_config=False,
            synch=True,
        )
        self._seed, self._space = search.seed, search.space
        furthest = max((len(record.evaluations) for record in history if record.status == "running"), default=0)
        self._next_perturbation_sync = (furthest // search.grace + 1) * search.grace

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Ray refuses searchers beside it; ours learns nothing from results that pbt has changed."""
        no_searcher: Any = SimpleNamespace(search_alg=None)
        super().on_trial_add(no_searcher, trial)
        last_time = self._next_perturbation_sync - self._perturbation_interval
        self._trial_state[trial].last_perturbation_time = int(last_time)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE, or PAUSE until all have come."""
        for each in tune_controller.get_live_trials():
            if each.is_finished():  # Ray counts failed trials among those it waits for
                self._trial_state[each].last_train_time = int(self._next_perturbation_sync)
        with _seeded(derive_seed(self._seed, f"{result['evaluation']}/pbt")):
            return str(super().on_trial_result(tune_controller, trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """As Ray, which would wait for ever if the last that is waited for fails instead of reporting."""
        live = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if live and all(self._waits(trial) for trial in live):
            trial = min(live, key=lambda each: str(each.config["id"]))
            self.on_trial_result(tune_controller, trial, self._trial_state[trial].last_result or {})
        return super().choose_trial_to_run(tune_controller)

    def _waits(self, trial: Trial) -> bool:
        return bool(
            trial.status == Trial.PAUSED and self._trial_state[trial].last_train_time >= self._next_perturbation_sync
        )

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        values = {path: _within(self._space[path], value) for path, value in config["values"].items()}
        return {**trial.config, "values": values}, operations  # it stays itself, where it is


def _mutation(distribution: Distribution) -> Any:
    if distribution.loguniform is not None:
        return tune.loguniform(*distribution.loguniform)
    if distribution.uniform is not None:
        return tune.uniform(*distribution.uniform)
    return list(options(distribution))


def _within(distribution: Distribution, value: Any) -> Any:
    """Ray multiplies by 0.8 or 1.2 and looks at no bounds."""
    bounds = distribution.loguniform or distribution.uniform
    return min(max(float(value), bounds[0]), bounds[1]) if bounds else value


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Ray's PBT draws from the global generators."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
