"""What mattered in a search: the objective by depth, by learning rate, and by every parameter alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raycnn.searching.answer import scored
from raycnn.searching.records import TrialRecord
from raycnn.training.metrics import Mode

RATE: Final = "optim.lr"
_MIN_TRIALS = 8
_MAX_EXACT = 4


def importance(records: Iterable[TrialRecord], metric: str, mode: Mode) -> dict[str, float] | None:
    """The share of the objective's variance that each parameter explains alone, largest first.

    Epsilon squared, the correlation ratio less what chance alone would give (Kelley, "An unbiased correlation ratio
    measure", PNAS 21, 1935), no lower than 0: (SS_between - (k - 1) SS_within / (n - k)) / SS_total over k groups of n
    trials. Groups are equal values; of a number that mostly differs, its quartiles, which are the same on any scale.
    Main effects only: what two parameters do together is in neither, so the shares need not sum to 1.

    Returns:
        Share in [0, 1] by dotted path, without parameters that differ in every trial and are no numbers; None
        with fewer than 8 trials that have a value, or where all have the same.
    """
    found = scored(records, metric, mode)
    ranked, objective_N = [record for _, record in found], np.array([value for value, _ in found])
    if len(ranked) < _MIN_TRIALS or np.ptp(objective_N) == 0:
        return None
    paths = dict.fromkeys(path for record in ranked for path in record.values)
    groups = {path: _groups([record.values.get(path) for record in ranked]) for path in paths}
    shares = {path: _share(objective_N, g) for path, g in groups.items() if g.max() + 1 < len(ranked)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _groups(values: Sequence[Any]) -> npt.NDArray[np.int64]:
    """The group of each value, 0 to k - 1."""
    names, group_N = np.unique([json.dumps(value, sort_keys=True) for value in values], return_inverse=True)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if numbers and 2 * len(names) > len(values):
        edges = np.quantile(values, (0.25, 0.5, 0.75))
        _, group_N = np.unique(np.searchsorted(edges, values), return_inverse=True)
    return group_N


def _share(objective_N: npt.NDArray[np.float64], group_N: npt.NDArray[np.int64]) -> float:
    counts_K = np.bincount(group_N)
    means_K = np.bincount(group_N, objective_N) / counts_K
    total = float(((objective_N - objective_N.mean()) ** 2).sum())
    within = float(((objective_N - means_K[group_N]) ** 2).sum())
    chance = (len(counts_K) - 1) * within / (len(objective_N) - len(counts_K))
    return min(1.0, max(0.0, (total - within - chance) / total))


@dataclass(frozen=True)
class Level:
    """The trials that share one value: the best and the median of the metric, the median cost in seconds."""

    value: str
    num_trials: int
    best: float
    median: float
    seconds: float


def by_depth(records: Iterable[TrialRecord], metric: str, mode: Mode) -> list[Level]:
    """The trials with a value by unfreezing depth, shallow first."""
    found = sorted(scored(records, metric, mode), key=lambda pair: depth_order(pair[1].depth))
    return _levels([record.depth for _, record in found], found, mode)


def by_learning_rate(records: Iterable[TrialRecord], metric: str, mode: Mode) -> list[Level]:
    """The trials with a value by learning rate (see `rate_cells`), low first; empty where none was searched."""
    found = [pair for pair in scored(records, metric, mode) if RATE in pair[1].values]
    found.sort(key=lambda pair: pair[1].values[RATE])
    texts, cell_N = rate_cells([record.values[RATE] for _, record in found])
    return _levels([texts[cell] for cell in cell_N], found, mode)


def _levels(values: Sequence[str], found: Sequence[tuple[float, TrialRecord]], mode: Mode) -> list[Level]:
    groups: dict[str, list[tuple[float, TrialRecord]]] = {}
    for value, pair in zip(values, found, strict=True):
        groups.setdefault(value, []).append(pair)
    levels = []
    for value, group in groups.items():
        objectives = [objective for objective, _ in group]
        best = max(objectives) if mode == "max" else min(objectives)
        seconds = median(record.seconds for _, record in group)
        levels.append(Level(value, len(group), best, median(objectives), seconds))
    return levels


def depth_order(depth: str) -> tuple[float, str]:
    """A key that sorts depths: numbers, then `all` and lists of phases."""
    return (int(depth), "") if depth.isdecimal() else (math.inf, depth)


def rate_cells(rates: Sequence[float]) -> tuple[list[str], list[int]]:
    """Cells for learning rates: the texts of all cells, low first, and the cell of each rate.

    Every value (of 3 digits) its own where they are at most 4 or come twice on average, as on a grid; else from 1 to 3
    and from 3 to 10 of each power of ten, some of which may be empty.
    """
    rounded = [float(f"{rate:.3g}") for rate in rates]
    distinct = sorted(set(rounded))
    if len(distinct) <= _MAX_EXACT or 2 * len(distinct) <= len(rates):
        return [f"{rate:g}" for rate in distinct], [distinct.index(rate) for rate in rounded]
    powers = range(math.floor(math.log10(distinct[0])) - 1, math.floor(math.log10(distinct[-1])) + 2)
    edges = np.array([float(f"{digit}e{power}") for power in powers for digit in (1, 3)])
    cell_N = np.searchsorted(edges, rates, side="right") - 1
    low, high = int(cell_N.min()), int(cell_N.max())
    texts = [f"{edges[i]:g} to {edges[i + 1]:g}" for i in range(low, high + 1)]
    return texts, [int(cell) - low for cell in cell_N]
