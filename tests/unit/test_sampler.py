from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from ray import tune

from raycnn.config import Distribution, SearchConfig
from raycnn.searching.records import Evaluation, Status, TrialRecord
from raycnn.searching.sampler import Sampler, draw

SPACE: dict[str, Any] = {
    "optim.lr": {"loguniform": [1e-4, 1e-1]},
    "optim.weight_decay": {"uniform": [0.0, 0.5]},
    "train.global_batch": {"quniform": [16, 64, 16]},
    "train.seed": {"randint": [3, 7]},
    "loss.class_weights": {"choice": ["none", "balanced"]},
    "model.unfreeze": {"grid": [0, 1, [{"depth": 0, "epochs": 1}, {"depth": 2, "epochs": 2}]]},
}


def sampler(space: dict[str, Any] | None = None, first: Any = (), **search: Any) -> Sampler:
    return Sampler(SearchConfig.model_validate({"space": space or SPACE, **search}), "accuracy", "max", first)


def record(number: int, values: dict[str, Any], score: float | None, status: Status = "finished") -> TrialRecord:
    evaluations = () if score is None else (Evaluation(10, 1.0, 1.0, {"accuracy": score}),)
    return TrialRecord(f"{number:04}", values, "0", status, evaluations)


def test_values_depend_on_seed_and_number_alone_and_survive_json() -> None:
    first = [sampler().values(number, []) for number in range(8)]
    assert [sampler().values(number, [record(0, first[0], 0.5)]) for number in reversed(range(8))] == first[::-1]
    assert json.loads(json.dumps(first)) == first
    assert len({values["optim.lr"] for values in first}) == 8
    assert sampler(seed=1).values(0, [])["optim.lr"] != first[0]["optim.lr"]


def test_another_setting_in_the_space_moves_no_draw() -> None:
    fewer = {path: SPACE[path] for path in ("optim.lr", "train.seed", "model.unfreeze")}
    for number in range(5):
        values = sampler(fewer).values(number, [])
        assert values.items() <= sampler().values(number, []).items()


def test_trials_go_round_the_cells_of_the_grid() -> None:
    depths = [json.dumps(sampler().values(number, [])["model.unfreeze"]) for number in range(7)]
    assert depths == [json.dumps(SPACE["model.unfreeze"]["grid"][number % 3]) for number in range(7)]


@pytest.mark.parametrize(
    ("kind", "arguments", "domain"),
    [
        ("loguniform", [1e-4, 1e-1], tune.loguniform(1e-4, 1e-1)),
        ("uniform", [-1, 3], tune.uniform(-1, 3)),
        ("quniform", [0.1, 0.55, 0.1], tune.quniform(0.1, 0.5, 0.1)),
        ("quniform", [15, 66, 16], tune.quniform(16, 64, 16)),
        ("randint", [3, 7], tune.randint(3, 7)),
        ("choice", [1, 2, 5], tune.choice([1, 2, 5])),
    ],
)
def test_draws_are_distributed_as_those_of_ray_tune(kind: str, arguments: Any, domain: Any) -> None:
    distribution = Distribution.model_validate({kind: arguments})
    ours = np.sort([draw(distribution, (number + 0.5) / 2000) for number in range(2000)])
    rays = np.sort(domain.sample(size=2000, random_state=np.random.RandomState(1)))
    spread = ours[-1] - ours[0]
    assert (
        np.abs(np.quantile(ours, [0, 0.1, 0.3, 0.6, 0.9, 1]) - np.quantile(rays, [0, 0.1, 0.3, 0.6, 0.9, 1])).max()
        < 0.06 * spread
    )
    if kind in ("quniform", "randint", "choice"):
        assert set(np.round(ours, 9)) == set(np.round(rays, 9))
        shares, expected = Counter(np.round(ours, 9)), Counter(np.round(rays, 9))
        assert all(abs(shares[value] - expected[value]) < 100 for value in shares)


def test_draws_fill_the_range() -> None:
    both = {"optim.momentum": {"uniform": [0, 1]}, "augment.hflip": {"uniform": [0, 1]}}
    drawn = [sampler(both).values(number, []) for number in range(2000)]
    units = [values["optim.momentum"] for values in drawn]
    assert abs(np.corrcoef(units, [values["augment.hflip"] for values in drawn])[0, 1]) < 0.06
    assert 0 <= min(units) < 0.01
    assert 0.99 < max(units) < 1
    assert abs(fmean(units) - 0.5) < 0.02
    assert abs(np.corrcoef(units[1:], units[:-1])[0, 1]) < 0.06


def test_first_values_come_first_and_those_outside_the_space_never() -> None:
    inside = sampler().values(11, [])
    outside = {**inside, "optim.lr": 1.0}
    warm = sampler(first=[outside, inside, inside])
    assert warm.values(0, []) == inside
    assert warm.values(1, [])["model.unfreeze"] == 0
    assert warm.values(1, []) == sampler().values(1, []) | {"model.unfreeze": 0}


def test_a_warm_started_grid_still_visits_each_cell_once() -> None:
    space = {"optim.lr": {"grid": [0.1, 0.2, 0.3]}, "model.unfreeze": {"grid": [0, 1]}}
    best = {"optim.lr": 0.3, "model.unfreeze": 0}
    seen = [sampler(space, first=[best]).values(number, []) for number in range(6)]
    assert seen[0] == best
    assert len({tuple(sorted(values.items())) for values in seen}) == 6


def score(values: dict[str, Any]) -> float:
    return 1 - 0.1 * abs(math.log10(values["optim.lr"]) + 2) - (values["optim.weight_decay"] - 0.1) ** 2


TPE_SPACE = {path: SPACE[path] for path in ("optim.lr", "optim.weight_decay", "train.seed", "loss.class_weights")}


def search(number_of_trials: int, space: Any, **settings: Any) -> list[TrialRecord]:
    history: list[TrialRecord] = []
    for number in range(number_of_trials):
        values = sampler(space, **settings).values(number, history)
        history.append(record(number, json.loads(json.dumps(values)), score(values)))
    return history


def test_tpe_learns_from_the_trials_so_far() -> None:
    late = {
        searcher: fmean(
            score(each.values) for seed in range(3) for each in search(30, TPE_SPACE, searcher=searcher, seed=seed)[20:]
        )
        for searcher in ("random", "tpe")
    }
    assert late["tpe"] > late["random"] + 0.03


def test_tpe_is_deterministic_and_goes_on_alike_after_a_restart() -> None:
    whole = search(12, TPE_SPACE, searcher="tpe")
    assert search(12, TPE_SPACE, searcher="tpe") == whole
    for number in (0, 4, 6, 11):
        assert sampler(TPE_SPACE, searcher="tpe").values(number, whole[:number]) == whole[number].values
    assert sampler(TPE_SPACE, searcher="tpe", seed=1).values(11, whole[:11]) != whole[11].values


def test_tpe_keeps_to_the_grid_and_learns_within_a_cell() -> None:
    space = {**TPE_SPACE, "model.unfreeze": {"grid": [0, 1]}}
    history = search(14, space, searcher="tpe")
    assert [each.values["model.unfreeze"] for each in history] == [0, 1] * 7
    next_values = sampler(space, searcher="tpe").values(14, history)
    mirrored = [
        record(number, each.values, 0.0) if each.values["model.unfreeze"] == 1 else each
        for number, each in enumerate(history)
    ]
    assert sampler(space, searcher="tpe").values(14, mirrored) == next_values
    worse = [record(number, each.values, 1 - score(each.values)) for number, each in enumerate(history)]
    assert sampler(space, searcher="tpe").values(14, worse) != next_values


def test_tpe_takes_every_kind_of_trial_and_value() -> None:
    history = search(8, SPACE, searcher="tpe")
    values = history[0].values
    others = [
        record(8, values, None, "running"),
        record(9, values, 0.4, "running"),
        record(10, values, 0.3, "stopped"),
        record(11, values, None, "failed"),
    ]
    drawn = sampler(searcher="tpe").values(8, history + others)
    assert drawn.keys() == SPACE.keys()
    assert json.loads(json.dumps(drawn)) == drawn
    assert drawn["train.global_batch"] in (16, 32, 48, 64)
    assert drawn["train.seed"] in range(3, 7)


def test_tpe_leaves_out_what_is_no_trial_of_this_search() -> None:
    history = search(12, TPE_SPACE, searcher="tpe")
    best = max(history, key=lambda each: score(each.values))
    ask = sampler(TPE_SPACE, searcher="tpe").values
    outside = record(12, {**best.values, "optim.lr": 0.5}, 0.99)
    fewer = record(13, {"optim.lr": 0.01}, 0.99)
    assert ask(14, [*history, outside, fewer]) == ask(14, history)
    assert ask(14, [*history, replace(best, id="c0", stage="confirm")]) == ask(14, history)
    assert ask(14, [*history, replace(best, id="0012")]) != ask(14, history)


def test_tpe_learns_from_trials_that_wait_at_a_rung_of_asha() -> None:
    history = search(12, TPE_SPACE, searcher="tpe")
    waiting, worse = (
        [record(number, each.values, sign * score(each.values), "running") for number, each in enumerate(history)]
        for sign in (1, -1)
    )
    for scheduler, learns in (("asha", True), ("none", False)):
        ask = sampler(TPE_SPACE, searcher="tpe", scheduler=scheduler).values
        assert (ask(12, waiting) != ask(12, worse)) is learns


def test_tpe_draws_trials_that_start_together_apart() -> None:
    assert len({sampler(TPE_SPACE, searcher="tpe").values(n, [])["optim.lr"] for n in range(6)}) == 6


def test_tpe_minimises_when_less_is_better() -> None:
    history = search(14, TPE_SPACE, searcher="tpe")
    settings = SearchConfig.model_validate({"space": TPE_SPACE, "searcher": "tpe"})
    assert Sampler(settings, "accuracy", "min").values(14, history) != Sampler(settings, "accuracy", "max").values(
        14, history
    )
