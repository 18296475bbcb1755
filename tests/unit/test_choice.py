"""What scores and costs recommend."""

from __future__ import annotations

import numpy as np
import pytest

from raycnn.results.choice import MANY_ROWS, Cut, as_good, best, choose_depths, choose_network, front
from raycnn.results.choose import fold_scores
from raycnn.training.problems import ONE_LABEL

NOISE = np.array([0.02, -0.01, 0.0, -0.02, 0.01])


def cut(network: int = 0, depth: int = 0, score: float | None = 0.8, ms: float = 1.0, noise: float = 0.0) -> Cut:
    scores = (None,) * 5 if score is None else tuple((score + noise * NOISE).tolist())
    return Cut(network, depth, 8, scores, ms, 3 * ms, 100)


def test_mean_and_spread_are_those_of_the_folds_that_have_a_score() -> None:
    found = Cut(0, 0, 8, (0.5, None, 0.7), 1, 3, 100)
    assert found.score == pytest.approx(0.6)
    assert found.spread == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert cut(score=None).score is None
    assert Cut(0, 0, 8, (0.5, None), 1, 3, 100).spread is None


def test_the_front_has_what_nothing_beats_in_both() -> None:
    cuts = [
        cut(score=0.9, ms=4),
        cut(score=0.8, ms=2),
        cut(score=0.8, ms=3),
        cut(score=0.7, ms=2),
        cut(score=None, ms=1),
    ]
    assert front(cuts, "max") == [True, True, False, False, False]
    assert front(cuts, "min") == [False, False, False, True, False]


def test_of_equal_cuts_both_are_on_the_front() -> None:
    assert front([cut(), cut()], "max") == [True, True]


def test_as_good_means_within_a_standard_error_of_the_differences() -> None:
    top = cut(score=0.9)
    assert as_good(top, top, "max")
    assert not as_good(cut(score=0.89), top, "max")  # always worse by as much: no doubt about it
    deviation = np.std(NOISE, ddof=1) / np.sqrt(5)
    assert as_good(cut(score=0.9 - 0.99 * deviation, noise=1), top, "max")
    assert not as_good(cut(score=0.9 - 1.01 * deviation, noise=1), top, "max")
    assert as_good(cut(score=0.9 + 0.99 * deviation, noise=1), top, "min")
    assert not as_good(cut(score=0.9 + 1.01 * deviation, noise=1), top, "min")
    assert not as_good(cut(score=None), top, "max")


def test_of_networks_as_good_as_the_best_the_fastest_is_chosen() -> None:
    deviation = np.std(NOISE, ddof=1) / np.sqrt(5)
    cuts = [
        cut(0, 0, 0.90, ms=9),
        cut(0, 1, 0.70, ms=1),  # a cut of it is fast, the network is not
        cut(1, 0, 0.60, ms=5),
        cut(1, 1, 0.90 - 0.5 * deviation, ms=4, noise=1),  # its best cut counts
        cut(2, 0, 0.80, ms=1),
    ]
    assert best(cuts, "max") is cuts[0]
    assert choose_network(cuts, "max") == 1
    assert choose_network(cuts[:2] + cuts[4:], "max") == 0


def stages(*scores: float, noise: float = 0.0) -> list[Cut]:
    """A network's, from depth 0 on."""
    return [cut(0, depth, score, ms=10 - depth, noise=noise) for depth, score in enumerate(scores)]


def test_depths_are_the_head_where_features_stop_serving_and_one_more() -> None:
    assert choose_depths(stages(0.9, 0.8, 0.7, 0.6, 0.5), "max", rows=200) == [0, 1]
    assert choose_depths(stages(0.8, 0.85, 0.9, 0.6, 0.5), "max", rows=200) == [0, 2, 3]
    close = [cut(0, 0, 0.8), cut(0, 1, 0.9), cut(0, 2, 0.897, noise=1), cut(0, 3, 0.6), cut(0, 4, 0.5)]
    assert choose_depths(close, "max", rows=200) == [0, 1, 2, 3]
    assert choose_depths(stages(0.1, 0.1, 0.1, 0.6, 0.5), "min", rows=200) == [0, 2, 3]


def test_many_rows_may_train_the_whole_network() -> None:
    assert choose_depths(stages(0.9, 0.8, 0.7, 0.6, 0.5), "max", rows=MANY_ROWS) == [0, 1, 4]
    assert choose_depths(stages(0.9, 0.8), "max", rows=MANY_ROWS) == [0, 1]


def test_a_fold_is_predicted_by_a_head_that_has_not_seen_it() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 120)
    folds = np.arange(120) % 4
    held = np.stack([(folds == (number + 1) % 4) for number in range(4)])
    each_its_own = np.eye(120, dtype=np.float32)  # whoever has seen a row knows its label
    about = labels, folds, held, ONE_LABEL, 2, "accuracy"
    assert np.mean(fold_scores(each_its_own, about)) < 0.65
    told = draw.standard_normal((120, 20)).astype(np.float32) + 2 * labels[:, None].astype(np.float32)
    assert np.mean(fold_scores(told, about)) > 0.95
