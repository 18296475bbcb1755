"""Outputs learned under one mix of classes, for another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raycnn.config import Config, load_config
from raycnn.results.priors import corrected, estimated_shift, learned_log_priors, prior_shift

COUNTS = np.array([700, 200, 100])
BASE = {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "reference/lenet"}}


def config(**changes: Any) -> Config:
    return load_config(BASE, {path.replace("__", "."): value for path, value in changes.items()})


def shares(logs: Any) -> list[float]:
    return list(np.exp(logs).round(3))


@pytest.mark.parametrize(
    ("settings", "learned"),
    [
        ({}, [0.7, 0.2, 0.1]),
        ({"data__resample": "balanced"}, [0.334, 0.333, 0.333]),
        ({"data__resample": "sqrt"}, [0.523, 0.279, 0.198]),
        ({"loss__class_weights": "balanced"}, [0.333, 0.333, 0.333]),
        ({"data__resample": "balanced", "loss__class_weights": "balanced"}, [0.333, 0.333, 0.333]),
        ({"loss__logit_adjustment": 1.0}, [0.333, 0.333, 0.333]),
    ],
)
def test_what_shares_a_network_learns(settings: dict[str, Any], learned: list[float]) -> None:
    assert shares(learned_log_priors(config(**settings), COUNTS)) == pytest.approx(learned, abs=0.0011)


def sample(priors: Any, seed: int = 0, rows: int = 6000) -> tuple[Any, Any]:
    """(log-likelihoods of three classes, labels) of points in the plane, classes being Gaussians in a triangle."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, rows, p=priors)
    centres = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    points = centres[labels] + generator.normal(size=(rows, 2))
    return -((points[:, None] - centres) ** 2).sum(2) / 2, labels


def loss(logits: Any, labels: Any) -> float:
    return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


def test_the_shift_gives_the_posterior_of_the_other_shares() -> None:
    likelihoods, labels = sample([0.7, 0.2, 0.1])
    balanced = config(data__resample="balanced")
    learned = likelihoods + learned_log_priors(balanced, COUNTS)
    exact = likelihoods + np.log([0.7, 0.2, 0.1])
    shifted = learned + prior_shift(balanced, COUNTS, "rows")
    assert loss(shifted, labels) == pytest.approx(loss(exact, labels), abs=1e-3)
    assert loss(shifted, labels) < loss(learned, labels) - 0.05
    even = exact + prior_shift(config(), COUNTS, "uniform")
    assert np.abs((even - likelihoods) - (even - likelihoods)[:, :1]).max() < 1e-9
    logits = learned.astype(np.float32)
    assert np.array_equal(corrected(balanced, COUNTS, logits, "trained"), logits)
    np.testing.assert_allclose(corrected(balanced, COUNTS, logits, "rows"), shifted, atol=1e-5)


def test_shares_are_found_without_labels() -> None:
    likelihoods, labels = sample([0.1, 0.3, 0.6])
    learned = learned_log_priors(config(), COUNTS)
    logits = (likelihoods + learned).astype(np.float32)
    shift = estimated_shift(logits, learned)
    assert np.exp(shift + learned) == pytest.approx([0.1, 0.3, 0.6], abs=0.03)
    assert loss(logits + shift, labels) < loss(logits, labels) - 0.3


def test_a_class_without_rows_changes_nothing_to_nan() -> None:
    counts = np.array([5, 0, 9])
    for settings in ({}, {"loss__class_weights": "balanced"}, {"data__resample": "balanced"}):
        made = config(**settings)
        assert np.isfinite(prior_shift(made, counts, "rows")).all()
        assert np.isfinite(estimated_shift(np.zeros((4, 3), np.float32), learned_log_priors(made, counts))).all()
