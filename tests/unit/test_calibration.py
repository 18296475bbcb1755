"""The temperature against scipy's minimum, thresholds against every threshold there is; both with the commit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn import metrics as sk

from raycnn.errors import CheckpointError
from raycnn.results.evaluate import Scores, with_intervals
from raycnn.training.calibration import Calibration, fit_cut, fit_temperature
from raycnn.training.problems import Binary, MultiLabel, OneLabel, Regression


def sample(rows: int, classes: int, seed: int, scale: float) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)) * 2
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)  # drawn from these very probabilities
    return (logits * scale).astype(np.float32), labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
@pytest.mark.parametrize(("rows", "classes"), [(50, 2), (400, 5)])
def test_the_temperature_is_the_best_one(rows: int, classes: int, scale: float) -> None:
    logits, labels = sample(rows, classes, rows, scale)

    def loss(temperature: float) -> float:
        return float(-log_softmax(logits.astype(np.float64) / temperature, 1)[np.arange(rows), labels].mean())

    best = minimize_scalar(loss, bounds=(1 / 20, 20), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(best.x, rel=1e-4)
    assert loss(found) <= best.fun + 1e-12
    assert fit_temperature(logits.copy(), labels) == found


def test_what_was_scaled_is_found_again() -> None:
    logits, labels = sample(20_000, 4, 1, 3.0)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.05)


def test_rows_that_are_all_right_or_all_alike_stay_within_the_bounds() -> None:
    sure = np.array([[3.0, 0.0], [0.0, 3.0]], np.float32)
    assert fit_temperature(sure, np.array([0, 1])) == pytest.approx(1 / 20, rel=1e-3)
    assert fit_temperature(sure, np.array([1, 0])) == pytest.approx(20, rel=1e-3)
    assert 1 / 20 <= fit_temperature(np.zeros((3, 2), np.float32), np.array([0, 1, 1])) <= 20


@pytest.mark.parametrize("goal", ["f1", "balanced_accuracy"])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_cut_is_better(goal: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(40) < 0.3
    scores = np.round(random.normal(size=40) + positive, 1)
    measure = sk.f1_score if goal == "f1" else sk.balanced_accuracy_score
    every = [measure(positive, scores > cut) for cut in [*np.unique(scores), scores.min() - 1]]
    cut = fit_cut(scores, positive, goal)
    assert measure(positive, scores > cut) == pytest.approx(max(every))
    assert cut not in scores
    assert fit_cut(scores, positive, "none") == 0.0
    assert fit_cut(scores, np.zeros(40, bool), goal) == fit_cut(scores, np.ones(40, bool), goal) == 0.0


def test_metrics_beside_the_plain_ones() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((300, 3)) < 0.2).astype(np.float32)
    logits = (3 * (random.normal(size=(300, 3)) + 2 * targets) - 6).astype(np.float32)
    problem = MultiLabel(3)
    calibration = problem.calibrate(logits, targets, "f1")
    assert calibration is not None
    found = with_intervals(Scores(problem, logits, targets, [None] * 300, calibration))
    assert found["loss_calibrated"] < found["loss"]
    assert found["macro_f1_tuned"] > found["macro_f1"] == problem.measure(logits, targets)["macro_f1"]
    scaled = expit(logits / calibration.temperature)
    assert found["loss_calibrated"] == pytest.approx(sk.log_loss(targets.ravel(), scaled.ravel()), rel=1e-6)
    told = calibration.told(("a", "b", "c"))
    answers = problem.answers(logits, ("a", "b", "c"), calibration)
    above = [[name for name, p in zip("abc", row, strict=True) if p > told["thresholds"][name]] for row in scaled]
    assert answers["labels"] == above
    np.testing.assert_allclose(answers["probabilities"], scaled, rtol=1e-5)


def test_a_correction_is_of_the_calibrated_probabilities() -> None:
    logits, shift = sample(20, 3, 0, 3.0)[0], np.array([1.0, -1.0, 0.5])
    calibration = Calibration(2.5)
    corrected = calibration.around(lambda z: (z + shift).astype(np.float32))(logits)
    expected = OneLabel().probabilities(calibration.scaled(logits)) * np.exp(shift)
    found = OneLabel().probabilities(calibration.scaled(corrected))
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_each_task() -> None:
    logits, labels = sample(200, 2, 0, 3.0)
    one = OneLabel().calibrate(logits, labels, "f1")
    two = Binary().calibrate(logits[:, 1:] - logits[:, :1], labels[:, None].astype(np.float32), "f1")
    assert one is not None
    assert two is not None
    assert one.cuts == ()
    assert two.temperature == pytest.approx(one.temperature, rel=1e-4)
    assert two.told(("no", "yes"))["thresholds"].keys() == {"yes"}
    assert Regression().calibrate(logits, labels, "f1") is None
    assert OneLabel().calibrate(logits[:0], labels[:0], "f1") is None
    assert OneLabel().calibrate(logits * np.float32(np.nan), labels, "f1") is None


def test_a_manifest_keeps_it_and_what_is_none_is_refused(tmp_path: Path) -> None:
    found = Calibration(1.5, (0.25, -3.0))
    assert Calibration.of(asdict(found)) == found
    assert Calibration.of(None) == Calibration()
    for bad in ({}, {"temperature": 0, "cuts": []}, {"temperature": 1, "cuts": ["x"]}, {"temperature": 1, "cuts": 3}):
        with pytest.raises(CheckpointError, match="not a calibration"):
            Calibration.of(bad)
