"""Successive halving: who goes on from a rung, who waits there, and who is stopped."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from raycnn.searching.records import Evaluation, TrialRecord
from tests.support.walking import EVALUATIONS, Runs, asha, evaluations_of, of_record, result, walk


def test_asha_lets_the_best_of_each_depth_go_on_from_every_rung(run: Runs) -> None:
    trials = [(0.5, 1), (0.3, 0), (0.1, 1), (0.2, 0), (0.9, 1), (0.4, 0), (0.05, 0), (0.02, 0)]
    results = run(asha(), [walk(lr, depth=depth) for lr, depth in trials], concurrent=2)
    assert evaluations_of(results) == [1, 1, 1, 1, EVALUATIONS, EVALUATIONS, 1, 1]


@pytest.mark.parametrize("concurrent", [2, 4, None])
def test_of_trials_that_come_in_ascending_order_only_the_best_goes_on(concurrent: int | None, run: Runs) -> None:
    trials = [walk(lr, evaluations=2) for lr in (0.1, 0.2, 0.3, 0.4)]
    assert evaluations_of(run(asha(2), trials, concurrent)) == [1, 1, 1, 2]


def test_an_ascending_grid_over_depths_costs_little_more_than_its_first_evaluations(run: Runs) -> None:
    grid = [walk(lr, depth=depth, evaluations=2) for depth in range(3) for lr in (0.1, 0.2, 0.3, 0.4)]
    assert evaluations_of(run(asha(2), grid, 4)) == [1, 1, 1, 2] * 3


def test_trials_that_wait_keep_no_new_one_from_starting_and_go_on_when_more_have_come(run: Runs) -> None:
    trials = [walk(lr) for lr in (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)]
    results = run(asha(), trials, concurrent=1)
    assert evaluations_of(results) == [EVALUATIONS, 3, 1, 1, 1, 1]


@pytest.mark.parametrize("number", [1, 2])
def test_of_fewer_trials_than_the_reduction_the_best_goes_on(number: int, run: Runs) -> None:
    trials = [walk(lr) for lr in (0.4, 0.3)[:number]]
    assert evaluations_of(run(asha(), trials, concurrent=1)) == [EVALUATIONS, 1][:number]


@pytest.mark.parametrize("end", ["fails_after", "raises_after"])
@pytest.mark.parametrize("after", [0, 1])
def test_nobody_waits_for_a_trial_that_failed(end: str, after: int, run: Runs) -> None:
    trials = [walk(0.9, **{end: after}), walk(0.4), walk(0.3)]
    results = run(asha(reduction=2), trials, concurrent=3)
    assert len(results["0001"]) == EVALUATIONS or after == 1, "the best of those that came to the first rung goes on"
    assert len(results["0002"]) == 1


class Places:
    """Who rests and who resumes, where."""

    def __init__(self) -> None:
        self.rested: list[str] = []
        self.resumed: list[str] = []

    def rest(self, trial: str) -> None:
        self.rested.append(trial)

    def resume(self, trial: str) -> str:
        self.resumed.append(trial)
        return "another"


def test_a_trial_that_paused_goes_on_from_its_own_checkpoint_where_there_is_room(run: Runs) -> None:
    scheduler = asha(grace=2)
    scheduler.places = places = Places()
    results = run(scheduler, [walk(lr) for lr in (0.3, 0.2, 0.1)], concurrent=1)
    assert (places.rested, places.resumed) == (["0000", "0001", "0002"], ["0000"])
    assert [each["objective"] for each in results["0000"]] == pytest.approx(
        [0.3 * n for n in range(1, EVALUATIONS + 1)]
    )
    assert [each["pack"] for each in results["0000"]] == [0, 0, *["another"] * 4]


def test_a_trial_that_waited_before_a_restart_counts_and_goes_on_only_when_promoted(run: Runs) -> None:
    history = [of_record("0000", 0.1), of_record("0001", 0.3), of_record("0002", 0.2, 0.4)]
    trials = [walk(lr, state=lr, evaluation=1) for lr in (0.1, 0.3)] + [walk(0.2, state=0.4, evaluation=2), walk(0.05)]
    results = run(asha(history=history), trials, concurrent=2)
    first = {name: found[0]["evaluation"] for name, found in results.items()}
    assert first == {"0001": 2, "0002": 3, "0003": 1}, "the best goes on, the one beyond the rung too, 0000 is stopped"
    assert {name: found[-1]["evaluation"] for name, found in results.items()} == {"0001": 6, "0002": 3, "0003": 1}


class Stand:
    """A trial as Tune holds it."""

    def __init__(self, name: str, depth: str) -> None:
        self.config, self.status = {"id": name, "depth": depth}, "PENDING"

    def set_status(self, status: str) -> None:
        self.status = status

    def init_local_path(self) -> None: ...

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"


class Play:
    """Tune with all trials at once, whose results come in any order; it can be begun again from the records."""

    def __init__(self, values: dict[str, list[float]], draws: random.Random, **settings: Any) -> None:
        self.values, self.draws, self.settings = values, draws, settings
        self.records = {name: TrialRecord(name, {}, str(number % 2)) for number, name in enumerate(values)}
        self.search_alg = SimpleNamespace(is_finished=lambda: True)
        self.start()

    def start(self) -> None:
        self.scheduler = asha(9, list(self.records.values()), **self.settings)
        self.trials = [Stand(each.id, each.depth) for each in self.records.values() if each.status == "running"]
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def stop_trial(self, trial: Stand) -> None:
        self.scheduler.on_trial_remove(self, trial)
        self.end(trial, "stopped")

    def end(self, trial: Stand, status: Any) -> None:
        trial.status = "TERMINATED"
        name = trial.config["id"]
        self.records[name] = replace(self.records[name], status=status)

    def step(self) -> bool:
        while (chosen := self.scheduler.choose_trial_to_run(self)) is not None:
            chosen.status = "RUNNING"
        running = [trial for trial in self.trials if trial.status == "RUNNING"]
        if not running:
            assert all(trial.is_finished() for trial in self.trials), "it hangs"
            return False
        trial = self.draws.choice(running)
        record = self.records[name := trial.config["id"]]
        number = len(record.evaluations) + 1
        value = self.values[name][number]
        evaluation = Evaluation(number, number, number, {"accuracy": value})
        self.records[name] = replace(record, evaluations=(*record.evaluations, evaluation))
        if number == 9:
            self.scheduler.on_trial_complete(self, trial, result(number, value, record.depth))
            self.end(trial, "finished")
        elif self.scheduler.on_trial_result(self, trial, result(number, value, record.depth)) == "PAUSE":
            trial.status = "PAUSED"
        return True

    def outcome(self) -> dict[str, tuple[str, int]]:
        while self.step():
            pass
        return {name: (record.status, len(record.evaluations)) for name, record in self.records.items()}


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(10))
def test_neither_the_order_of_results_nor_a_restart_changes_who_goes_on(mode: Any, seed: int) -> None:
    draws = random.Random(seed)
    settings = {"mode": mode, "reduction": 2, "grace": 1 + seed % 2}
    values = {f"{n:04}": [draws.random() for _ in range(10)] for n in range(draws.randrange(5, 20))}
    expected = Play(values, draws, **settings).outcome()
    assert Play(values, draws, **settings).outcome() == expected
    for _ in range(10):
        restarted = Play(values, draws, **settings)
        for _ in range(draws.randrange(1, 40)):
            restarted.step()
        restarted.start()
        assert restarted.outcome() == expected
    for group in "01":
        reached = sorted(n for name, (_, n) in expected.items() if int(name) % 2 == int(group))
        assert reached[-1] == 9, "the best of every depth comes to its end"
        assert sum(n > 1 + seed % 2 for n in reached) == max(1, len(reached) // 2)


def test_grace_and_reduction_place_the_rungs() -> None:
    scheduler = asha(9, grace=2, reduction=2)
    scheduler.on_trial_add(None, SimpleNamespace(config={"id": "a", "depth": "0"}, is_finished=lambda: False))
    trial = SimpleNamespace(config={"id": "a"})
    paused = [n for n in range(1, 9) if scheduler.on_trial_result(None, trial, result(n, 1.0)) == "PAUSE"]
    assert paused == [2, 4, 8]
