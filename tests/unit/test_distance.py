"""How far sets of features lie apart."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from raycnn.results.distance import chance, distance, frechet, tell_apart


def normal(rows: int, size: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return (mean + scale * np.random.default_rng(seed).standard_normal((rows, size))).astype(np.float32)


@pytest.mark.parametrize(("rows", "size"), [(200, 12), (30, 50)], ids=["many rows", "fewer rows than features"])
def test_frechet_is_that_of_the_formula(rows: int, size: int) -> None:
    mixing = np.random.default_rng(9).standard_normal((size, size)).astype(np.float32)
    a, b = normal(rows, size, 0) @ mixing, normal(rows + 7, size, 1, mean=0.3, scale=1.5)
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-3)


def test_a_set_is_at_no_distance_from_itself_and_a_step_aside_counts_squared() -> None:
    a = normal(100, 8, 0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + np.float32(2)) == pytest.approx(8 * 4, rel=1e-4)


def test_two_samples_of_one_distribution_cannot_be_told_apart() -> None:
    found, _ = distance(normal(200, 20, 0), normal(200, 20, 1))
    assert abs(found.auroc - 0.5) < 3 * chance(200)
    assert abs(found.a_distance) < 0.5


def test_the_rows_that_moved_are_told_apart() -> None:
    b = normal(200, 20, 1)
    b[:100] += 3
    found, scores = distance(normal(200, 20, 0), b)
    assert found.auroc > 0.7
    assert scores[:100].min() > np.median(scores[100:])
    far, _ = distance(normal(200, 20, 0), normal(200, 20, 1, mean=3))
    assert far.auroc == pytest.approx(1, abs=1e-3)
    assert far.a_distance == pytest.approx(2, abs=0.05)


def test_rows_are_told_apart_by_classifiers_that_have_not_seen_them() -> None:
    a, b = normal(60, 200, 0), normal(60, 200, 1)  # with so many features what was seen is told apart at once
    scores = np.concatenate(tell_apart(a, b))
    right = (scores > 0) == np.repeat([False, True], 60)
    assert right.mean() < 0.65


def test_chance_is_the_spread_of_areas_without_a_difference() -> None:
    draw = np.random.default_rng(0)
    areas = []
    for _ in range(400):
        a, b = draw.random(30), draw.random(30)
        areas.append((a[:, None] < b[None]).mean())
    assert chance(30) == pytest.approx(np.std(areas), rel=0.15)
