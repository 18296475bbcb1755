"""What the trials say: who is best and how sure that is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raycnn.config import Config
from raycnn.results.statistics import Interval, bootstrap_by_group
from raycnn.searching.records import Evaluation, TrialRecord
from raycnn.training.metrics import Mode, metric_mode

_SAME_COST = 1.1


def goal(config: Config) -> tuple[str, Mode]:
    """The metric that compares the trials, and whether more or less of it is better."""
    metric = config.search.metric or config.train.metric
    return metric, config.search.mode or metric_mode(metric)


def best_evaluation(record: TrialRecord, metric: str, mode: Mode) -> Evaluation | None:
    """The trial's evaluation with the best metric, the earliest of equals; None where no value is finite."""
    found = _best(record, metric, mode)
    return found[1] if found else None


def ranking(records: Iterable[TrialRecord], metric: str, mode: Mode) -> list[TrialRecord]:
    """Finished and stopped trials that have a finite value, best first; equals by seconds, then by id."""
    return [record for _, record in scored(records, metric, mode)]


def scored(records: Iterable[TrialRecord], metric: str, mode: Mode) -> list[tuple[float, TrialRecord]]:
    """(best value, trial) in the order of `ranking`."""
    sign = -1 if mode == "max" else 1
    known = [
        (found[0], record)
        for record in records
        if record.status in ("finished", "stopped") and (found := _best(record, metric, mode))
    ]
    return sorted(known, key=lambda pair: (sign * pair[0], pair[1].seconds, pair[1].id))


def _best(record: TrialRecord, metric: str, mode: Mode) -> tuple[float, Evaluation] | None:
    known = [
        (value, evaluation)
        for value, evaluation in zip(record.values_of(metric), record.evaluations, strict=True)
        if value is not None and math.isfinite(value)
    ]
    pick = max if mode == "max" else min
    return pick(known, key=lambda pair: pair[0], default=None)


@dataclass(frozen=True)
class Confirmation:
    """One configuration, trained under several seeds.

    Args:
        values: what the search chose, by dotted path, without train.seed.
        ids: its trials.
        mean: of the best metric of each seed; None if no seed has one.
        sd: sample standard deviation over the seeds (n - 1); None below two.
        stderr: of the mean, sd / sqrt(n); None below two.
        num_seeds: seeds with a value.
        seconds: mean cost of a seed.
        reason: why it cannot be chosen, None if it can.
    """

    values: dict[str, Any]
    ids: tuple[str, ...]
    mean: float | None
    sd: float | None
    stderr: float | None
    num_seeds: int
    seconds: float
    reason: str | None


def confirmed(records: Iterable[TrialRecord], metric: str, mode: Mode) -> list[Confirmation]:
    """The configurations of the confirming trials, in the order of their first one."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(json.dumps(_without_seed(record), sort_keys=True), []).append(record)
    return [_confirmation(group, metric, mode) for group in groups.values()]


def _confirmation(trials: Sequence[TrialRecord], metric: str, mode: Mode) -> Confirmation:
    found = [_best(record, metric, mode) for record in trials]
    values = [value for value, _ in filter(None, found)]
    sd = stdev(values) if len(values) > 1 else None
    out = [
        f"{record.id} {record.status}" + (f": {record.reason}" if record.reason else "")
        if record.status != "finished"
        else f"{record.id} has no finite {metric}"
        for record, best in zip(trials, found, strict=True)
        if record.status != "finished" or best is None
    ]
    return Confirmation(
        values=_without_seed(trials[0]),
        ids=tuple(record.id for record in trials),
        mean=fmean(values) if values else None,
        sd=sd,
        stderr=None if sd is None else sd / math.sqrt(len(values)),
        num_seeds=len(values),
        seconds=fmean(record.seconds for record in trials),
        reason="; ".join(out) or None,
    )


def _without_seed(record: TrialRecord) -> dict[str, Any]:
    return {path: value for path, value in record.values.items() if path != "train.seed"}


def choose(configurations: Iterable[Confirmation], mode: Mode) -> Confirmation | None:
    """The cheapest configuration whose mean is within one standard error of the best mean; None if all are out.

    The one-standard-error rule (Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3;
    Hastie et al., "The Elements of Statistical Learning", section 7.10). Costs within 10 % of the cheapest count as
    equal, being measured; among equals, and where the best has one seed only, the best mean wins.
    """
    sign = -1.0 if mode == "max" else 1.0
    able = [(sign * each.mean, each) for each in configurations if each.reason is None and each.mean is not None]
    if not able:
        return None
    lowest, best = min(able, key=lambda pair: (pair[0], pair[1].seconds))
    near = [pair for pair in able if pair[0] <= lowest + (best.stderr or 0.0)]
    cheapest = min(each.seconds for _, each in near)
    cheap = [pair for pair in near if pair[1].seconds <= _SAME_COST * cheapest]
    return min(cheap, key=lambda pair: (pair[0], pair[1].seconds))[1]


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same rows.

    Args:
        difference: accuracy of the new one less that of the old one.
        ci95: 95 % interval of the difference; None with fewer than two groups.
        p_value: of McNemar's exact test, which takes rows as independent.
        gained: rows that only the new one has right.
        lost: rows that only the old one has right.
        num_rows: all rows.
        verdict: better or worse where the interval leaves out 0 and p is below 0.05.
    """

    difference: float
    ci95: Interval | None
    p_value: float
    gained: int
    lost: int
    num_rows: int
    verdict: Literal["better", "worse", "no difference shown"]


def paired(
    right_new_N: npt.ArrayLike, right_old_N: npt.ArrayLike, groups_N: npt.ArrayLike | None = None
) -> Paired | None:
    """Compare which rows two classifiers have right; None without rows.

    The interval is a bootstrap by group; the p value is twice the binomial tail of the rows on which the two differ, at
    one half (McNemar, 1947, in its exact form). Few such rows make the interval too narrow, groups make the p value
    too small: a difference has to pass both.

    Args:
        right_new_N: whether the new one has the row right.
        right_old_N: the same of the old one.
        groups_N: rows that belong together (patient, site, module); None: each row alone.
    """
    change_N = np.asarray(right_new_N, bool).astype(np.int64) - np.asarray(right_old_N, bool)
    if len(change_N) == 0:
        return None
    gained, lost = int((change_N > 0).sum()), int((change_N < 0).sum())
    groups = np.arange(len(change_N)) if groups_N is None else groups_N
    interval = bootstrap_by_group(lambda rows: {"change": float(change_N[rows].mean())}, groups)["change"]
    differ = gained + lost
    tail = sum(math.comb(differ, few) for few in range(min(gained, lost) + 1))
    p_value = min(1.0, 2 * tail / 2**differ)
    shown = interval is not None and not interval[0] <= 0 <= interval[1] and p_value < 0.05
    verdict: Literal["better", "worse"] = "better" if gained > lost else "worse"
    return Paired(
        difference=(gained - lost) / len(change_N),
        ci95=interval,
        p_value=p_value,
        gained=gained,
        lost=lost,
        num_rows=len(change_N),
        verdict=verdict if shown else "no difference shown",
    )
