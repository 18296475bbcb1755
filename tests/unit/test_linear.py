"""The convex head: the answer of scikit-learn's solvers, and a strength that suits the data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from raycnn.results.linear import STRENGTHS, fit, fit_chosen, path

FEATURES, LABELS = load_digits(return_X_y=True)
FEATURES = FEATURES.astype(np.float32)
CLOSE = {"rtol": 2e-3, "atol": 2e-3}


@pytest.mark.parametrize("rows", [500, 40], ids=["many rows", "fewer rows than features"])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_one_label_is_multinomial_logistic_regression(rows: int, strength: float) -> None:
    features, labels = FEATURES[:rows], LABELS[:rows]
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(scaler.transform(features), labels)
    found = fit(features, labels, "single-label", 10, strength)(FEATURES[500:])
    expected = reference.predict_proba(scaler.transform(FEATURES[500:]))
    shown = np.exp(found - np.logaddexp.reduce(found.astype(float), axis=1, keepdims=True))
    np.testing.assert_allclose(shown, expected, atol=3e-3)


def test_yes_or_no_is_a_logistic_regression_a_class() -> None:
    features, yes = FEATURES[:400], np.stack([LABELS[:400] == 3, LABELS[:400] > 5], 1).astype(np.float32)
    found = fit(features, yes, "multi-label", 2, 0.1)(FEATURES[400:])
    scaler = StandardScaler().fit(features)
    for k in range(2):
        reference = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(scaler.transform(features), yes[:, k])
        np.testing.assert_allclose(found[:, k], reference.decision_function(scaler.transform(FEATURES[400:])), **CLOSE)


def test_a_number_is_ridge_regression() -> None:
    features, numbers = FEATURES[:400], (LABELS[:400] - 4.5) / 2.9
    found = fit(features, numbers, "regression", 1, 0.1)(FEATURES[400:])
    scaler = StandardScaler().fit(features)
    reference = Ridge(alpha=10).fit(scaler.transform(features), numbers)
    np.testing.assert_allclose(found[:, 0], reference.predict(scaler.transform(FEATURES[400:])), **CLOSE)


def test_a_feature_that_does_not_vary_says_nothing() -> None:
    constant = np.full((300, 1), 0.1, np.float32)
    with_it = fit(np.hstack([FEATURES[:300], constant]), LABELS[:300], "single-label", 10, 0.1)
    without = fit(FEATURES[:300], LABELS[:300], "single-label", 10, 0.1)
    elsewhere = np.hstack([FEATURES[300:], np.full((len(FEATURES) - 300, 1), 0.1001, np.float32)])
    np.testing.assert_allclose(with_it(elsewhere), without(FEATURES[300:]), rtol=1e-3, atol=1e-3)


def test_the_strength_is_the_one_that_says_held_rows_best() -> None:
    generator = np.random.default_rng(0)
    held = np.arange(200) % 4 == 0
    targets = generator.integers(0, 2, 200)
    noise = generator.standard_normal((200, 60)).astype(np.float32)
    told = noise + 3 * targets[:, None].astype(np.float32)

    def chosen(features: np.ndarray) -> float:
        head = fit_chosen(features, targets, held, "single-label", 2)
        heads = path(features, targets, "single-label", 2, STRENGTHS)
        sizes = [np.abs(each.weight_FK).sum() for each in heads]
        return STRENGTHS[int(np.argmin(np.abs(np.array(sizes) - np.abs(head.weight_FK).sum())))]

    assert chosen(noise) < chosen(told)
