from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from raycnn.results.statistics import bootstrap_by_group, wilson


@pytest.mark.parametrize(
    ("successes", "trials"),
    [(0, 1), (1, 1), (0, 21), (11, 11), (1, 2), (575, 656), (3, 10_000), (123_456, 10**6)],
)
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    interval = wilson(successes, trials)
    expected = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    assert interval == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


def test_wilson_stays_within_zero_and_one() -> None:  # rounding alone would leave it, e.g. at 0 of 21
    for trials in range(1, 300):
        for successes in (0, trials):
            low, high = wilson(successes, trials) or (-1, 2)
            assert 0 <= low < high <= 1


def test_wilson_of_nothing_is_none() -> None:
    assert wilson(0, 0) is None


VALUES = np.random.default_rng(0).normal(10, 2, size=400)


def mean(rows: Any) -> Mapping[str, float | None]:
    return {"mean": float(VALUES[rows].mean())}


def test_single_rows_give_the_interval_of_the_mean() -> None:
    low, high = bootstrap_by_group(mean, np.arange(400), num_samples=4000)["mean"] or (0, 0)
    half = 1.96 * VALUES.std(ddof=1) / 20
    assert low == pytest.approx(VALUES.mean() - half, abs=0.015)
    assert high == pytest.approx(VALUES.mean() + half, abs=0.015)


def test_groups_are_drawn_whole_and_as_often_as_there_are_groups() -> None:
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    seen = set()

    def measure(rows: Any) -> dict[str, float | None]:
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
        seen.add(tuple(counts))
        return {"rows": float(len(rows))}

    bootstrap_by_group(measure, groups, num_samples=200)
    assert len(seen) == 10  # every multiset of three groups


def test_equal_rows_in_a_group_widen_the_interval() -> None:
    def width(groups: Any) -> float:
        low, high = bootstrap_by_group(lambda rows: {"m": float(labels[rows].mean())}, groups)["m"] or (0, 0)
        return high - low

    labels = np.repeat(np.arange(40) % 2, 10)
    alone, grouped = width(np.arange(400)), width(np.repeat(np.arange(40), 10))
    assert grouped == pytest.approx(alone * 10**0.5, rel=0.15)


def test_the_seed_decides() -> None:
    first = bootstrap_by_group(mean, np.arange(400), num_samples=50, seed=1)
    assert first == bootstrap_by_group(mean, np.arange(400), num_samples=50, seed=1)
    assert first != bootstrap_by_group(mean, np.arange(400), num_samples=50, seed=2)


def test_undefined_metrics_and_too_few_groups_are_none() -> None:
    def measure(rows: Any) -> dict[str, float | None]:
        both = len(set(VALUES[rows] > 10)) == 2
        return {
            "never": None,
            "sometimes": 0.5 if both else None,
            "whole": 1.0 if len(set(rows)) == 8 else None,
        }

    assert bootstrap_by_group(measure, np.arange(8), num_samples=40) == {
        "never": None,
        "sometimes": (0.5, 0.5),
        "whole": None,  # no sample of these holds all eight rows
    }
    assert bootstrap_by_group(mean, np.zeros(400)) == {"mean": None}
