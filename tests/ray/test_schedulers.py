"""Ray's schedulers as the search builds them, on a trial whose state is one number."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle, tune

from raycnn.config import SearchConfig
from raycnn.errors import ConfigError
from raycnn.searching import schedulers
from raycnn.searching.records import Evaluation, TrialRecord
from raycnn.searching.schedulers import HalvingBySeconds, Population, build
from raycnn.searching.tuner import Suggestions

LR = {"optim.lr": {"loguniform": [0.01, 1.0]}}
EVALUATIONS = 6


class Walk(tune.Trainable):
    """Every evaluation adds the learning rate to the state; a deeper one starts better and costs more."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.mine, self.state, self.evaluation = config, config.get("state", 0.0), config.get("evaluation", 0)
        return True

    def step(self) -> dict[str, Any]:
        values, depth = self.mine["values"], self.mine["depth"]
        if self.evaluation == self.mine.get("fails_after"):
            return {"done": True, "reason": "failed"}
        if self.evaluation == self.mine.get("raises_after"):
            raise RuntimeError("failed")
        self.evaluation += 1
        self.state += values["optim.lr"]
        return {
            "evaluation": self.evaluation,
            "objective": self.state + 100 * depth,
            "depth": str(depth),
            "seconds": self.evaluation * 10.0**depth,
            "done": self.evaluation == self.mine.get("evaluations", EVALUATIONS),
            "values": values,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"state": self.state, "evaluation": self.evaluation}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state, self.evaluation = checkpoint["state"], checkpoint["evaluation"]


class Watch(tune.Callback):
    """The results of each trial, as Tune hands them on."""

    def __init__(self) -> None:
        self.results: dict[str, list[dict[str, Any]]] = {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        kept = {key: result.get(key) for key in ("evaluation", "objective", "done", "values")}
        self.results.setdefault(trial.config["id"], []).append({**kept, "pack": trial.config["pack"]})


@pytest.fixture
def run(local_ray: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    monkeypatch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    monkeypatch.setenv("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1e9")

    def fit(scheduler: Any, trials: list[dict[str, Any]], concurrent: int | None = None) -> dict[str, list[Any]]:
        configs = [{"id": f"{number:04}", "pack": number % 2, **trial} for number, trial in enumerate(trials)]
        given: Any = SimpleNamespace(next=lambda: configs.pop(0) if configs else None)
        watch = Watch()
        tune.Tuner(
            tune.with_resources(Walk, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=Suggestions(given, "max", scheduler),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=str(tmp_path), name="tune", verbose=0, callbacks=[watch]),
        ).fit()
        return watch.results

    return fit


def search(space: Any = None, **settings: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": space or LR, **settings})


def walk(lr: float, **config: Any) -> dict[str, Any]:
    return {"values": {"optim.lr": lr}, "depth": 0, **config}


def evaluations_of(results: dict[str, list[dict[str, Any]]]) -> list[int]:
    """How far each came, in their order; each saw every evaluation once."""
    for found in results.values():
        assert [each["evaluation"] for each in found] == list(range(1, len(found) + 1))
    return [len(results[name]) for name in sorted(results)]


def asha(num_evaluations: int = EVALUATIONS, history: Any = (), mode: Any = "max", **settings: Any) -> Any:
    return build(search(scheduler="asha", **settings), "accuracy", mode, num_evaluations, history)


def test_asha_lets_the_best_of_each_depth_go_on_from_every_rung(run: Any) -> None:
    trials = [(0.5, 1), (0.3, 0), (0.1, 1), (0.2, 0), (0.9, 1), (0.4, 0), (0.05, 0), (0.02, 0)]
    results = run(asha(), [walk(lr, depth=depth) for lr, depth in trials], concurrent=2)
    assert evaluations_of(results) == [1, 1, 1, 1, EVALUATIONS, EVALUATIONS, 1, 1]


@pytest.mark.parametrize("concurrent", [2, 4, None])
def test_of_trials_that_come_in_ascending_order_only_the_best_goes_on(concurrent: int | None, run: Any) -> None:
    trials = [walk(lr, evaluations=2) for lr in (0.1, 0.2, 0.3, 0.4)]
    assert evaluations_of(run(asha(2), trials, concurrent)) == [1, 1, 1, 2]


def test_an_ascending_grid_over_depths_costs_little_more_than_its_first_evaluations(run: Any) -> None:
    grid = [walk(lr, depth=depth, evaluations=2) for depth in range(3) for lr in (0.1, 0.2, 0.3, 0.4)]
    assert evaluations_of(run(asha(2), grid, 4)) == [1, 1, 1, 2] * 3


def test_trials_that_wait_keep_no_new_one_from_starting_and_go_on_when_more_have_come(run: Any) -> None:
    trials = [walk(lr) for lr in (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)]
    results = run(asha(), trials, concurrent=1)
    assert evaluations_of(results) == [EVALUATIONS, 3, 1, 1, 1, 1]


@pytest.mark.parametrize("number", [1, 2])
def test_of_fewer_trials_than_the_reduction_the_best_goes_on(number: int, run: Any) -> None:
    trials = [walk(lr) for lr in (0.4, 0.3)[:number]]
    assert evaluations_of(run(asha(), trials, concurrent=1)) == [EVALUATIONS, 1][:number]


@pytest.mark.parametrize("end", ["fails_after", "raises_after"])
@pytest.mark.parametrize("after", [0, 1])
def test_nobody_waits_for_a_trial_that_failed(end: str, after: int, run: Any) -> None:
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


def test_a_trial_that_paused_goes_on_from_its_own_checkpoint_where_there_is_room(run: Any) -> None:
    scheduler = asha(grace=2)
    scheduler.places = places = Places()
    results = run(scheduler, [walk(lr) for lr in (0.3, 0.2, 0.1)], concurrent=1)
    assert (places.rested, places.resumed) == (["0000", "0001", "0002"], ["0000"])
    assert [each["objective"] for each in results["0000"]] == pytest.approx(
        [0.3 * n for n in range(1, EVALUATIONS + 1)]
    )
    assert [each["pack"] for each in results["0000"]] == [0, 0, *["another"] * 4]


def of_record(name: str, *values: float | None, **changes: Any) -> TrialRecord:
    evaluations = [Evaluation(n, n, n, {"accuracy": value}) for n, value in enumerate(values, 1)]
    return TrialRecord(name, {}, "0", evaluations=tuple(evaluations), **changes)


def test_a_trial_that_waited_before_a_restart_counts_and_goes_on_only_when_promoted(run: Any) -> None:
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


def result(evaluation: int, objective: float, depth: str = "0", seconds: float = 0.0) -> dict[str, Any]:
    return {"evaluation": evaluation, "objective": objective, "depth": depth, "seconds": seconds, "done": False}


def tell(scheduler: HalvingBySeconds, name: str, *args: Any) -> str:
    return scheduler.on_trial_result(None, SimpleNamespace(config={"id": name}), result(*args))


def end(scheduler: HalvingBySeconds, name: str, *args: Any) -> None:
    scheduler.on_trial_complete(None, SimpleNamespace(config={"id": name}), result(*args))


def test_grace_and_reduction_place_the_rungs() -> None:
    scheduler = asha(9, grace=2, reduction=2)
    scheduler.on_trial_add(None, SimpleNamespace(config={"id": "a", "depth": "0"}, is_finished=lambda: False))
    assert [n for n in range(1, 9) if tell(scheduler, "a", n, 1.0) == "PAUSE"] == [2, 4, 8]


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


def test_pbt_losers_go_on_from_a_copy_of_the_winner_with_other_settings(run: Any) -> None:
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
def test_pbt_does_not_wait_for_a_trial_that_failed(run: Any, end: str) -> None:
    trials = [walk(lr) for lr in RATES] + [walk(0.3, **{end: 1})]
    results = run(build(search(scheduler="pbt", grace=2), "accuracy", "max", EVALUATIONS), trials)
    assert [len(results[f"{number:04}"]) for number in range(4)] == [EVALUATIONS] * 4
    assert results["0002"][2]["objective"] > 2.0


def test_pbt_after_a_restart_goes_on_in_step(run: Any) -> None:
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
