"""How sure a metric is: 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]
_Z95 = NormalDist().inv_cdf(0.975)


def wilson(successes: int, num_trials: int) -> Interval | None:
    """The score interval of a share, 95 % (Wilson, 1927), within [0, 1]; None without trials.

    It takes rows as independent: for rows that come in groups use `bootstrap_by_group`.
    """
    if num_trials == 0:
        return None
    share, spread = successes / num_trials, _Z95**2 / num_trials
    center = share + spread / 2
    half = _Z95 * math.sqrt(share * (1 - share) / num_trials + spread / (4 * num_trials))
    low, high = (center - half) / (1 + spread), (center + half) / (1 + spread)
    return max(0.0, low), min(1.0, high)


def bootstrap_by_group(
    measure: Callable[[npt.NDArray[np.int64]], Mapping[str, float | None]],
    groups_N: npt.ArrayLike,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Percentile intervals, 95 %, from drawing whole groups with replacement.

    The cluster bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8).

    Args:
        measure: metrics by name of an array of row numbers in [0, N), in which a row may come several times.
        groups_N: the group of each row (patient, site, module); a value of its own for a row without a group.
        num_samples: how often to draw and measure; the time is about that many calls of `measure`.
        seed: the same seed gives the same intervals.

    Returns:
        (low, high) for every metric; None where the metric is None on the rows themselves or on every sample,
        or where there are fewer than two groups. Samples on which a metric is None do not count for it.
    """
    _, group_N = np.unique(np.asarray(groups_N), return_inverse=True)
    order = np.argsort(group_N, kind="stable")
    rows_by_group = np.split(order, np.cumsum(np.bincount(group_N))[:-1])
    names = measure(np.arange(len(group_N)))
    if len(rows_by_group) < 2:
        return dict.fromkeys(names)
    random = np.random.default_rng(seed)
    draws = random.integers(len(rows_by_group), size=(num_samples, len(rows_by_group)))
    measured = [measure(np.concatenate([rows_by_group[g] for g in draw])) for draw in draws]
    return {
        name: None if value is None else _percentiles([sample[name] for sample in measured])
        for name, value in names.items()
    }


def _percentiles(values: list[Any]) -> Interval | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)
