"""The values of each trial: a function of its number and of the trials before it; a resumed search goes on alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycnn.config import Distribution, SearchConfig
from raycnn.data.keyed import derive_seed
from raycnn.searching.answer import best_evaluation
from raycnn.searching.records import TrialRecord
from raycnn.searching.space import cells, contains, multiples, options, times
from raycnn.training.metrics import Mode

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_STARTUP_TRIALS = 5


@dataclass(frozen=True)
class Sampler:
    """Draws the values of trials.

    Args:
        search: the settings of the search.
        metric: what trials are compared by.
        mode: whether more or less of it is better.
        first: values to try before all others, such as the best of a former search; those outside the space are
            left out.
    """

    search: SearchConfig
    metric: str
    mode: Mode
    first: Sequence[dict[str, Any]] = ()

    def values(self, number: int, history: Sequence[TrialRecord]) -> dict[str, Any]:
        """The values of trial `number` (from 0), by dotted path, JSON-able.

        After `first` come the cells of the grid, again and again; what is not a grid is drawn, at random by (seed,
        number, path), or by TPE from those trials of `history` that share the cell. (Cells are problems of their own:
        to let TPE learn across the values of a setting, make it a choice.)
        """
        space = self.search.space
        first = [v for place, v in enumerate(self.first) if contains(space, v) and v not in self.first[:place]]
        if number < len(first):
            return dict(first[number])
        grid = [cell for cell in cells(space) if cell not in first]
        cell = grid[(number - len(first)) % len(grid)]
        drawn = {path: distribution for path, distribution in space.items() if path not in cell}
        if self.search.searcher == "tpe" and drawn:
            peers = [
                record
                for record in history
                if record.stage == "search" and contains(space, record.values) and record.values.items() >= cell.items()
            ]
            return cell | self._model(number, drawn, peers)
        return cell | {path: draw(each, self._unit(number, path)) for path, each in drawn.items()}

    def _unit(self, number: int, path: str) -> float:
        return (derive_seed(self.search.seed, f"{number}/{path}") >> 10) * 2.0**-53

    def _model(self, number: int, drawn: dict[str, Distribution], peers: list[TrialRecord]) -> dict[str, Any]:
        """Tree-structured Parzen estimator, multivariate (Bergstra et al., 2011; Falkner et al., 2018), by Optuna."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP_TRIALS, seed=derive_seed(self.search.seed, f"{number}/tpe") % 2**32
        )
        study = optuna.create_study(direction="maximize" if self.mode == "max" else "minimize", sampler=sampler)
        scales = {path: _scale(distribution) for path, distribution in sorted(drawn.items())}
        for record in peers:
            study.add_trial(self._told(record, drawn, scales))
        asked = study.ask(fixed_distributions=scales)
        return {path: _from_scale(drawn[path], asked.params[path]) for path in drawn}

    def _told(
        self, record: TrialRecord, drawn: dict[str, Distribution], scales: dict[str, BaseDistribution]
    ) -> FrozenTrial:
        """A trial as Optuna knows it: stopped ones rank below finished ones, by how far they came."""
        from optuna.trial import TrialState, create_trial

        best = best_evaluation(record, self.metric, self.mode)
        value = best.metrics[self.metric] if best else None
        state = {
            "running": TrialState.RUNNING,
            "finished": TrialState.COMPLETE,
            "stopped": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }[record.status]
        if value is None and record.status != "running":
            state = TrialState.FAIL
        if value is not None and record.status == "running" and self.search.scheduler == "asha":
            state = TrialState.PRUNED  # most of these wait at a rung, for as long as there are new trials
        return create_trial(
            params={path: _to_scale(drawn[path], record.values[path]) for path in scales},
            distributions=scales,
            state=state,
            value=value if state is TrialState.COMPLETE else None,
            intermediate_values={len(record.evaluations): value} if value is not None else None,
        )


def draw(distribution: Distribution, unit: float) -> Any:
    """The value of a distribution at `unit` in [0, 1)."""
    if distribution.loguniform is not None:
        low, high = map(math.log, distribution.loguniform)
        return min(max(math.exp(low + unit * (high - low)), distribution.loguniform[0]), distribution.loguniform[1])
    if distribution.uniform is not None:
        low, high = distribution.uniform
        return low + unit * (high - low)
    if distribution.quniform is not None:  # rounding a uniform draw gives the two ends half their share, as in Ray
        first, last = multiples(distribution.quniform)
        return times(distribution.quniform[2], round(first + unit * (last - first)))
    values = options(distribution)
    return values[int(unit * len(values))]


def _scale(distribution: Distribution) -> BaseDistribution:
    """What Optuna draws from: the range itself, or the number of an option."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if distribution.loguniform is not None:
        return FloatDistribution(*distribution.loguniform, log=True)
    if distribution.uniform is not None:
        return FloatDistribution(*distribution.uniform)
    last = len(options(distribution)) - 1
    return CategoricalDistribution(range(last + 1)) if distribution.choice is not None else IntDistribution(0, last)


def _to_scale(distribution: Distribution, value: Any) -> Any:
    return value if distribution.kind in ("loguniform", "uniform") else options(distribution).index(value)


def _from_scale(distribution: Distribution, value: Any) -> Any:
    return value if distribution.kind in ("loguniform", "uniform") else options(distribution)[value]
