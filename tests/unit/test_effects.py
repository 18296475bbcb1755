from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycnn.searching.effects import Level, by_depth, by_learning_rate, depth_order, importance, rate_cells
from raycnn.searching.records import Evaluation, TrialRecord


def trial(id: int, accuracy: float | None, seconds: float = 1.0, **values: Any) -> TrialRecord:
    paths = {name.replace("__", "."): value for name, value in values.items()}
    evaluation = Evaluation(1, 1.0, seconds, {"accuracy": accuracy})
    return TrialRecord(f"{id:04d}", paths, str(paths.get("model.unfreeze", 0)), "finished", (evaluation,))


def share_of(parameter: list[Any], objective: list[float]) -> dict[str, float] | None:
    records = [trial(i, y, x=x) for i, (x, y) in enumerate(zip(parameter, objective, strict=True))]
    return importance(records, "accuracy", "max")


def test_importance_by_hand() -> None:
    records = [
        trial(i, (i + 1) / 10, model__unfreeze=i // 4, optim__name="ab"[i % 2], train__epochs=5) for i in range(8)
    ]
    # total 0.42; between depths 8 * 0.2² = 0.32, within 0.10: (0.32 - 0.10 / 6) / 0.42; between names less than chance
    assert importance(records, "accuracy", "max") == {
        "model.unfreeze": pytest.approx(0.722222, abs=1e-6),
        "optim.name": 0,
        "train.epochs": 0,
    }


def test_numbers_that_differ_count_by_their_quartiles() -> None:
    rates = [10.0**-power for power in range(8)]
    assert share_of(rates, [1, 1, 2, 2, 3, 3, 4, 4]) == {"x": 1}
    # pairs of one quartile differ as much as all do
    assert share_of(rates, [1, 2, 1, 2, 1, 2, 1, 2]) == {"x": 0}


@given(st.lists(st.integers(-20, 20), min_size=8, max_size=30, unique=True), st.randoms(use_true_random=False))
def test_the_scale_of_a_parameter_does_not_matter(numbers: list[int], random: Any) -> None:
    objective = [random.random() for _ in numbers]
    assert share_of(list(numbers), objective) == share_of([2.0**number for number in numbers], objective)


def test_chance_alone_explains_little() -> None:
    random = np.random.default_rng(0)
    shares = [
        (share_of(random.normal(size=16).tolist(), random.normal(size=16).tolist()) or {})["x"] for _ in range(200)
    ]
    assert np.mean(shares) < 0.1  # the plain correlation ratio says 3 / 15
    assert np.median(shares) == 0


def test_choices_of_any_kind_have_a_share() -> None:
    ladder: list[Any] = [0, "all", [{"depth": 0, "epochs": 1}], True]
    assert share_of(ladder * 2, [1, 2, 3, 4] * 2) == {"x": 1}


def test_a_choice_that_never_repeats_says_nothing() -> None:
    assert share_of(list("abcdefgh"), [1, 2, 3, 4, 5, 6, 7, 8]) == {}


def test_too_few_trials_or_equal_ones_have_no_importance() -> None:
    assert share_of([1, 2] * 3 + [1], [1, 2, 3, 4, 5, 6, 7]) is None
    assert share_of([1, 2] * 4, [0.1] * 8) is None
    assert share_of([1, 2] * 4, [1, 2, 3, 4, 5, 6, 7, math.nan]) is None
    assert importance([], "accuracy", "max") is None


def test_levels_by_hand() -> None:
    records = [
        trial(0, 0.5, 1.0, model__unfreeze="all", optim__lr=0.1),
        trial(1, 0.6, 2.0, model__unfreeze=10, optim__lr=0.1),
        trial(2, 0.7, 3.0, model__unfreeze=2, optim__lr=0.01),
        trial(3, 0.9, 5.0, model__unfreeze=2, optim__lr=0.1),
        trial(4, None, 9.0, model__unfreeze=3, optim__lr=1.0),
    ]
    assert by_depth(records, "accuracy", "max") == [
        Level("2", 2, 0.9, pytest.approx(0.8), 4.0),
        Level("10", 1, 0.6, 0.6, 2.0),
        Level("all", 1, 0.5, 0.5, 1.0),
    ]
    assert by_learning_rate(records, "accuracy", "min") == [
        Level("0.01", 1, 0.7, 0.7, 3.0),
        Level("0.1", 3, 0.5, 0.6, 2.0),
    ]
    assert by_learning_rate([trial(0, 0.5)], "accuracy", "max") == []


def test_depths_rise() -> None:
    assert sorted(["all", "10", "0 for 1, then all", "2"], key=depth_order) == ["2", "10", "0 for 1, then all", "all"]


def test_cells_of_a_grid_are_its_values() -> None:
    assert rate_cells([0.1, 0.001, 0.01, 0.1]) == (["0.001", "0.01", "0.1"], [2, 0, 1, 2])
    grid = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3] * 2
    texts, cells = rate_cells(grid)
    assert texts == ["1e-05", "3e-05", "0.0001", "0.0003", "0.001", "0.003"]
    assert cells == [0, 1, 2, 3, 4, 5] * 2
    assert rate_cells([]) == ([], [])


def test_cells_of_drawn_values_are_half_powers_of_ten() -> None:
    texts, cells = rate_cells([0.00012, 0.0003, 0.00029, 0.02, 0.01])
    assert texts == ["0.0001 to 0.0003", "0.0003 to 0.001", "0.001 to 0.003", "0.003 to 0.01", "0.01 to 0.03"]
    assert cells == [0, 1, 0, 4, 4]


@given(st.lists(st.floats(1e-8, 100), min_size=5, max_size=40, unique=True))
def test_every_drawn_value_lies_in_its_cell(rates: list[float]) -> None:
    texts, cells = rate_cells(rates)
    if " to " not in texts[0]:
        return  # few, of three digits
    for rate, cell in zip(rates, cells, strict=True):
        low, high = map(float, texts[cell].split(" to "))
        assert low <= rate < high
    assert min(cells) == 0
    assert max(cells) == len(texts) - 1
