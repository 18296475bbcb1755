from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from raycnn.config import load_config
from raycnn.searching.answer import (
    Confirmation,
    best_evaluation,
    choose,
    confirmed,
    goal,
    paired,
    ranking,
)
from raycnn.searching.records import Evaluation, TrialRecord


def trial(id: str, accuracies: list[float | None], seconds: float = 10.0, **kept: Any) -> TrialRecord:
    evaluations = tuple(
        Evaluation(step=i, epochs=float(i), seconds=seconds * i / len(accuracies), metrics={"accuracy": value})
        for i, value in enumerate(accuracies, 1)
    )
    return TrialRecord(id, **{"values": {}, "depth": "0", "status": "finished"} | kept, evaluations=evaluations)


def test_the_goal_is_what_the_search_says_or_the_training() -> None:
    tree: dict[str, Any] = {
        "run": {"name": "a", "storage": "b"},
        "data": {"source": "c"},
        "model": {"name": "reference/lenet"},
        "train": {"metric": "auroc"},
    }
    assert goal(load_config(tree)) == ("auroc", "max")
    assert goal(load_config(tree, {"search.metric": "loss"})) == ("loss", "min")
    assert goal(load_config(tree, {"search.mode": "min"})) == ("auroc", "min")


def test_the_best_evaluation_is_the_first_of_the_best_finite_ones() -> None:
    record = trial("0", [0.5, None, 0.7, 0.7, math.nan, math.inf, 0.6])
    assert getattr(best_evaluation(record, "accuracy", "max"), "step", None) == 3
    assert getattr(best_evaluation(record, "accuracy", "min"), "step", None) == 1
    assert best_evaluation(trial("0", [None, math.nan]), "accuracy", "max") is None
    assert best_evaluation(trial("0", []), "accuracy", "max") is None


def test_zero_is_a_value() -> None:
    record = trial("0", [0.0, -1.0])
    assert getattr(best_evaluation(record, "accuracy", "max"), "step", None) == 1
    assert ranking([record], "accuracy", "max") == [record]


def test_ranking_is_best_first_then_cheap_then_by_id() -> None:
    records = [
        trial("0003", [0.8], seconds=10),
        trial("0002", [0.9, 0.1], seconds=20),
        trial("0004", [0.9], seconds=5, status="stopped"),
        trial("0001", [0.8], seconds=10),
        trial("0005", [0.99], status="failed"),
        trial("0006", [0.99], status="running"),
        trial("0007", [None]),
        trial("0008", []),
    ]
    assert [record.id for record in ranking(records, "accuracy", "max")] == ["0004", "0002", "0001", "0003"]
    assert [record.id for record in ranking(records, "accuracy", "min")] == ["0002", "0001", "0003", "0004"]


@given(st.permutations(range(6)), st.lists(st.sampled_from([0.1, 0.2, math.nan]), min_size=6, max_size=6))
def test_ranking_does_not_depend_on_the_order_of_the_records(order: list[int], values: list[float]) -> None:
    records = [trial(str(i), [value]) for i, value in enumerate(values)]
    assert ranking([records[i] for i in order], "accuracy", "max") == ranking(records, "accuracy", "max")


def seeds(values: dict[str, Any], accuracies: list[float | None], seconds: float, **kept: Any) -> list[TrialRecord]:
    name = "-".join(map(str, values.values()))
    return [
        trial(f"{name}-{seed}", [value], seconds + seed, values=values | {"train.seed": seed}, stage="confirm", **kept)
        for seed, value in enumerate(accuracies)
    ]


def test_confirmed_by_hand() -> None:
    deep = seeds({"model.unfreeze": 2, "optim.lr": 0.01}, [0.90, 0.92, 0.94], 50)
    head = seeds({"model.unfreeze": 0, "optim.lr": 0.1}, [0.8], 5)
    first, second = confirmed([deep[0], head[0], *deep[1:]], "accuracy", "max")
    assert first == Confirmation(
        values={"model.unfreeze": 2, "optim.lr": 0.01},
        ids=("2-0.01-0", "2-0.01-1", "2-0.01-2"),
        mean=pytest.approx(0.92),
        sd=pytest.approx(0.02),  # sqrt((0.02² + 0 + 0.02²) / 2)
        stderr=pytest.approx(0.02 / 3**0.5),
        num_seeds=3,
        seconds=51,
        reason=None,
    )
    assert (second.mean, second.sd, second.stderr, second.num_seeds) == (0.8, None, None, 1)


def test_values_that_are_lists_make_configurations_too() -> None:
    phases = [{"depth": 0, "epochs": 1}, {"depth": "all", "epochs": 2}]
    found = confirmed(seeds({"model.unfreeze": phases}, [0.5, 0.7], 1), "accuracy", "max")
    assert [(each.values, each.num_seeds) for each in found] == [({"model.unfreeze": phases}, 2)]


def test_a_seed_that_did_not_finish_puts_its_configuration_out() -> None:
    good = seeds({"optim.lr": 0.1}, [0.5, 0.5], 1)
    bad = seeds({"optim.lr": 0.2}, [0.9, 0.9], 1)
    bad[1] = replace(bad[1], status="failed", reason="out of memory")
    blind = seeds({"optim.lr": 0.3}, [0.9, None], 1)
    ended = seeds({"optim.lr": 0.4}, [0.9, 0.9], 1, status="stopped", reason="search.budget_s")
    found = confirmed([*good, *bad, *blind, *ended], "accuracy", "max")
    assert [each.reason for each in found] == [
        None,
        "0.2-1 failed: out of memory",
        "0.3-1 has no finite accuracy",
        "0.4-0 stopped: search.budget_s; 0.4-1 stopped: search.budget_s",
    ]
    assert choose(found, "max") is found[0]
    assert choose(found[1:], "max") is None


def configuration(mean: float | None, stderr: float | None, seconds: float, reason: str | None = None) -> Confirmation:
    return Confirmation({}, (), mean, None, stderr, 3, seconds, reason)


def test_the_cheapest_within_one_standard_error_is_chosen() -> None:
    best = configuration(0.90, 0.02, 60)
    near = configuration(0.885, 0.001, 30)
    cheap = configuration(0.881, 0.05, 2)
    far = configuration(0.879, 0.05, 1)
    assert choose([best, near, cheap, far], "max") is cheap
    assert choose([best, near, far], "max") is near
    assert choose([far, best], "max") is best


def test_of_a_loss_less_is_better() -> None:
    best, near, far = configuration(0.30, 0.02, 60), configuration(0.315, 0.0, 5), configuration(0.325, 0.0, 1)
    assert choose([far, near, best], "min") is near


def test_costs_that_differ_by_noise_alone_leave_it_to_the_mean() -> None:
    best, worse, cheap = configuration(0.90, 0.02, 60), configuration(0.89, 0.02, 58), configuration(0.89, 0.02, 50)
    assert choose([worse, best], "max") is best
    assert choose([worse, best, cheap], "max") is cheap


def test_without_a_standard_error_the_best_mean_wins() -> None:
    best, cheap = configuration(0.90, None, 60), configuration(0.8999, None, 1)
    assert choose([cheap, best], "max") is best
    assert choose([configuration(None, None, 1)], "max") is None
    assert choose([], "max") is None


def test_paired_by_hand() -> None:
    new = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 1] * 10, bool)
    old = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 1] * 10, bool)
    found = paired(new, old)
    assert found is not None
    assert (found.gained, found.lost, found.num_rows) == (20, 10, 100)
    assert found.difference == pytest.approx(0.1)
    assert found.p_value == pytest.approx(binomtest(10, 30).pvalue)
    half = 1.96 * math.sqrt((0.3 - 0.1**2) / 100)  # of a mean of changes -1, 0, 1
    assert found.ci95 == (pytest.approx(0.1 - half, abs=0.015), pytest.approx(0.1 + half, abs=0.015))
    assert found.verdict == "no difference shown"  # p is 0.099


def test_better_and_worse() -> None:
    good, bad = np.arange(200) < 180, np.arange(200) < 150
    better, worse, same = paired(good, bad), paired(bad, good), paired(good, good)
    assert better is not None
    assert worse is not None
    assert same is not None
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert worse.difference == -better.difference
    assert (same.verdict, same.difference, same.p_value, same.ci95) == ("no difference shown", 0, 1, (0, 0))


def test_a_handful_of_rows_shows_nothing_although_the_interval_leaves_out_zero() -> None:
    found = paired(np.ones(100, bool), np.arange(100) >= 5)
    assert found is not None
    assert found.ci95 is not None
    assert found.ci95[0] > 0
    assert found.p_value == 2 / 2**5
    assert found.verdict == "no difference shown"


def test_rows_of_one_group_count_as_one() -> None:
    new, old = np.ones(60, bool), np.arange(60) >= 12  # all twelve gained rows are one patient's
    assert getattr(paired(new, old), "verdict", None) == "better"
    grouped = paired(new, old, np.arange(60) // 12)
    assert grouped is not None
    assert grouped.p_value < 0.001
    assert grouped.verdict == "no difference shown"
    alone = paired(new, old, np.zeros(60))
    assert alone is not None
    assert (alone.ci95, alone.verdict) == (None, "no difference shown")


def test_no_rows_say_nothing() -> None:
    assert paired([], []) is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mcnemar_is_the_binomial_test(rows: list[tuple[bool, bool]]) -> None:
    new, old = zip(*rows, strict=True)
    found = paired(new, old)
    assert found is not None
    differ = found.gained + found.lost
    expected = binomtest(found.gained, differ).pvalue if differ else 1.0
    assert found.p_value == pytest.approx(expected)
