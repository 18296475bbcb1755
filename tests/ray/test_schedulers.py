"""Ray's schedulers as the search builds them, on a trial whose state is one number."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raycnn.errors import ConfigError
from raycnn.searching import schedulers
from raycnn.searching.records import Evaluation, TrialRecord
from raycnn.searching.schedulers import HalvingBySeconds, Population, build
from tests.support.walking import EVALUATIONS, LR, Runs, asha, of_record, result, search, walk


def tell(scheduler: HalvingBySeconds, name: str, *args: Any) -> str:
    return scheduler.on_trial_result(None, SimpleNamespace(config={"id": name}), result(*args))


def end(scheduler: HalvingBySeconds, name: str, *args: Any) -> None:
    scheduler.on_trial_complete(None, SimpleNamespace(config={"id": name}), result(*args))


def test_at_equal_seconds_less_is_better_in_mode_min() -> None:
    for mode, expected in (("max", "STOP"), ("min", "CONTINUE")):
        scheduler = asha(9, mode=mode, compare="seconds")
        assert tell(scheduler, "a", 1, 0.5, "0", 1.0) == "CONTINUE"
        assert tell(scheduler, "b", 1, 0.4, "0", 1.0) == expected


def test_at_equal_seconds_depths_share_rungs() -> None:
    scheduler = build(search(scheduler="asha", compare="seconds"), "accuracy", "max", 9)
    assert tell(scheduler, "shallow", 1, 0.8, "0", 1.0) == "CONTINUE"
    assert tell(scheduler, "shallow", 2, 0.8, "0", 2.0) == "CONTINUE"
    assert tell(scheduler, "shallow", 3, 0.9, "0", 3.0) == "CONTINUE"
    assert tell(scheduler, "deep", 1, 0.85, "2", 2.9) == "CONTINUE", "better than the other one was after 1 s"
    assert tell(scheduler, "deep", 2, 0.85, "2", 5.8) == "STOP", "worse than the other one was after 3 s"


def test_at_equal_seconds_a_finished_trial_counts_on_and_a_stopped_one_does_not() -> None:
    scheduler = build(search(scheduler="asha", compare="seconds"), "accuracy", "max", 9)
    end(scheduler, "shallow", 9, 0.9, "0", 9.0)
    assert tell(scheduler, "deep", 1, 0.8, "2", 30.0) == "STOP"
    scheduler = build(search(scheduler="asha", compare="seconds"), "accuracy", "max", 9)
    assert tell(scheduler, "good", 1, 1.0, "0", 1.0) == "CONTINUE"
    assert tell(scheduler, "shallow", 1, 0.9, "0", 1.0) == "STOP"
    end(scheduler, "shallow", 1, 0.9, "0", 1.0)
    assert tell(scheduler, "deep", 1, 0.8, "2", 30.0) == "CONTINUE"


def test_at_equal_seconds_grace_counts_evaluations() -> None:
    scheduler = build(search(scheduler="asha", compare="seconds", grace=2), "accuracy", "max", 9)
    tell(scheduler, "a", 2, 0.9, "0", 1.5)
    assert tell(scheduler, "b", 1, 0.1, "0", 1.5) == "CONTINUE"
    assert tell(scheduler, "b", 2, 0.1, "0", 2.5) == "STOP"


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(10))
def test_at_equal_seconds_decisions_after_a_restart_equal_those_without_one(mode: Any, seed: int) -> None:
    settings = search(scheduler="asha", compare="seconds", reduction=2, grace=1 + seed % 2)
    draws = random.Random(seed)
    records = {f"{n:04}": TrialRecord(f"{n:04}", {"optim.lr": 0.1}, str(n % 3)) for n in range(18)}
    whole, restarted = (build(settings, "accuracy", mode, EVALUATIONS) for _ in range(2))
    decisions, restart_at = [], draws.randrange(10, 40)
    while open_trials := [name for name, record in records.items() if record.status == "running"][:6]:
        if len(decisions) == restart_at:
            known = [record for record in records.values() if record.evaluations]
            draws.shuffle(known)
            restarted = build(settings, "accuracy", mode, EVALUATIONS, known)
        name = draws.choice(open_trials)
        record = records[name]
        number, seconds = len(record.evaluations) + 1, record.seconds + draws.uniform(1, 2) * 4 ** int(record.depth)
        value = draws.random()
        record = replace(
            record, evaluations=(*record.evaluations, Evaluation(number, number, seconds, {"accuracy": value}))
        )
        told = (name, number, value, record.depth, seconds)
        if number == EVALUATIONS:
            both, status = [end(scheduler, *told) for scheduler in (whole, restarted)], "finished"
        else:
            both = [tell(scheduler, *told) for scheduler in (whole, restarted)]
            status = "stopped" if both[0] == "STOP" else "running"
            if status == "stopped":
                for scheduler in (whole, restarted):
                    end(scheduler, *told)
        decisions.append(both[0])
        assert both[0] == both[1], (len(decisions), restart_at)
        records[name] = replace(record, status=status)
    assert len(decisions) > restart_at
    assert {"STOP", "CONTINUE"} <= set(decisions[restart_at:])


def test_trials_of_the_confirmation_are_no_history() -> None:
    before = of_record("0000", 0.9, status="finished")
    for history, expected in (([before], "STOP"), ([replace(before, stage="confirm")], "CONTINUE")):
        assert tell(asha(9, history, compare="seconds"), "0001", 1, 0.1, "0", 1.0) == expected


@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_scheduler_that_could_never_act_is_refused(scheduler: str) -> None:
    with pytest.raises(ConfigError, match=r"never acts.*search\.grace"):
        build(search(scheduler=scheduler, grace=6), "accuracy", "max", 6)
    build(search(scheduler=scheduler, grace=5), "accuracy", "max", 6)


RATES = [0.05, 0.5, 0.02, 1.0]


def test_pbt_losers_go_on_from_a_copy_of_the_winner_with_other_settings(run: Runs) -> None:
    settings = search(scheduler="pbt", grace=2)
    first, second = (run(build(settings, "accuracy", "max", EVALUATIONS), [walk(lr) for lr in RATES]) for _ in range(2))
    assert first == second, "the same seed, the same history"
    assert {name: [each["evaluation"] for each in found] for name, found in first.items()} == {
        f"{number:04}": list(range(1, EVALUATIONS + 1)) for number in range(4)
    }
    winner, loser = first["0003"], first["0002"]
    took_over = loser[2]
    assert loser[1]["objective"] == pytest.approx(0.04)
    assert took_over["objective"] == pytest.approx(winner[1]["objective"] + took_over["values"]["optim.lr"])
    assert took_over["values"]["optim.lr"] not in RATES[:3]
    assert 0.01 <= took_over["values"]["optim.lr"] <= 1.0
    assert {each["pack"] for each in loser} == {0}, "it stays where it is"
    for name in ("0000", "0001"):
        assert first[name][2]["values"] == first[name][1]["values"], "those in the middle go on as they are"


@pytest.mark.parametrize("end", ["fails_after", "raises_after"])
def test_pbt_does_not_wait_for_a_trial_that_failed(run: Runs, end: str) -> None:
    trials = [walk(lr) for lr in RATES] + [walk(0.3, **{end: 1})]
    results = run(build(search(scheduler="pbt", grace=2), "accuracy", "max", EVALUATIONS), trials)
    assert [len(results[f"{number:04}"]) for number in range(4)] == [EVALUATIONS] * 4
    assert results["0002"][2]["objective"] > 2.0


def test_pbt_after_a_restart_goes_on_in_step(run: Runs) -> None:
    reached = {"0000": 3, "0001": 3, "0002": 2, "0003": 3}
    history = [
        TrialRecord(name, {}, "0", evaluations=tuple(Evaluation(n, n, n, {"accuracy": 0.0}) for n in range(number)))
        for name, number in reached.items()
    ]
    trials = [
        walk(lr, state=lr * number, evaluation=number) for lr, number in zip(RATES, reached.values(), strict=True)
    ]
    results = run(build(search(scheduler="pbt", grace=2), "accuracy", "max", EVALUATIONS, history), trials)
    loser = {each["evaluation"]: each["values"]["optim.lr"] for each in results["0002"]}
    assert loser[3] == loser[4] == 0.02
    assert loser[5] != 0.02
    assert [each["evaluation"] for each in results["0002"]] == [3, 4, 5, 6]


def test_pbt_changes_stay_within_the_space_and_keep_the_trial() -> None:
    space = {
        **LR,
        "optim.momentum": {"uniform": [0.5, 0.95]},
        "loss.label_smoothing": {"quniform": [0.0, 0.2, 0.1]},
        "loss.class_weights": {"choice": ["none", "balanced"]},
    }
    population = Population(search(space, scheduler="pbt"), "max")
    best = {"optim.lr": 1.0, "optim.momentum": 0.95, "loss.label_smoothing": 0.2, "loss.class_weights": "none"}
    winner = SimpleNamespace(config={"id": "0001", "pack": 1, "values": best})
    loser = SimpleNamespace(config={"id": "0002", "pack": 0, "values": dict.fromkeys(space)})
    seen: dict[str, set[Any]] = {path: set() for path in space}
    for _ in range(200):
        config, _ = population._get_new_config(loser, winner)
        assert (config["id"], config["pack"]) == ("0002", 0)
        for path, value in config["values"].items():
            seen[path].add(value)
    assert winner.config["values"] == best
    assert 0.01 <= min(seen["optim.lr"]) <= 0.8
    assert max(seen["optim.lr"]) == 1.0
    assert max(seen["optim.momentum"]) == 0.95
    assert seen["loss.label_smoothing"] == {0.0, 0.1, 0.2}
    assert seen["loss.class_weights"] == {"none", "balanced"}


def test_the_draws_of_pbt_leave_the_global_generators_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    drawn = []
    for _ in range(2):
        with schedulers._seeded(7):
            drawn.append((random.random(), np.random.random()))
    assert drawn[0] == drawn[1]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
