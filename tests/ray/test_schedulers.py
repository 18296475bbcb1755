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
from raycnn.searching.schedulers import Halving, Population, build

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
            "done": self.evaluation == EVALUATIONS,
            "values": values,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"state": self.state, "evaluation": self.evaluation}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state, self.evaluation = checkpoint["state"], checkpoint["evaluation"]


class Given(tune.search.Searcher):
    """Trials with these configs."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.configs = list(configs)

    def suggest(self, trial_id: str) -> Any:
        return self.configs.pop(0) if self.configs else self.FINISHED

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None: ...

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


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
        watch = Watch()
        tune.Tuner(
            tune.with_resources(Walk, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=Given(configs),
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


def test_asha_stops_losers_of_each_depth_and_sees_every_evaluation(run: Any) -> None:
    scheduler = build(search(scheduler="asha"), "accuracy", "max", EVALUATIONS)
    seen: list[tuple[str, int]] = []
    see = scheduler._see
    scheduler._see = lambda name, result: seen.append((name, result["evaluation"])) or see(name, result)
    trials = [(0.5, 1), (0.3, 0), (0.1, 1), (0.2, 0), (0.9, 1), (0.4, 0), (0.05, 0), (0.02, 0)]
    results = run(scheduler, [walk(lr, depth=depth) for lr, depth in trials], concurrent=2)
    evaluations = {name: [each["evaluation"] for each in found] for name, found in results.items()}
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in evaluations.values())
    assert set(seen) == {(name, number) for name, numbers in evaluations.items() for number in numbers}
    lengths = {name: len(numbers) for name, numbers in evaluations.items()}
    assert lengths["0004"] == lengths["0005"] == EVALUATIONS, "the best of each depth end by themselves"
    assert lengths["0002"] == lengths["0006"] == lengths["0007"] == 1, "the losers do not"
    assert set(lengths.values()) <= {1, 3, EVALUATIONS}, "rungs at 1 and 3"


def result(evaluation: int, objective: float, depth: str = "0", seconds: float = 0.0) -> dict[str, Any]:
    return {"evaluation": evaluation, "objective": objective, "depth": depth, "seconds": seconds, "done": False}


def tell(scheduler: Halving, name: str, *args: Any) -> str:
    return scheduler.on_trial_result(None, SimpleNamespace(config={"id": name}), result(*args))


def end(scheduler: Halving, name: str, *args: Any) -> None:
    scheduler.on_trial_complete(None, SimpleNamespace(config={"id": name}), result(*args))


def test_less_is_better_in_mode_min() -> None:
    for mode, expected in (("max", "STOP"), ("min", "CONTINUE")):
        scheduler = build(search(scheduler="asha"), "loss", mode, 9)
        assert tell(scheduler, "a", 1, 0.5) == "CONTINUE"
        assert tell(scheduler, "b", 1, 0.4) == expected


def test_grace_and_reduction_place_the_rungs() -> None:
    scheduler = build(search(scheduler="asha", grace=2, reduction=2), "accuracy", "max", 9)
    for evaluation in range(1, 10):
        tell(scheduler, "good", evaluation, 1.0)
    stops = []
    for name, fails_at in enumerate(range(1, 9)):
        for evaluation in range(1, 9):
            if tell(scheduler, str(name), evaluation, float(evaluation < fails_at) + 1e-3 * name) == "STOP":
                stops.append(evaluation)
                break
    assert set(stops) == {2, 4, 8}


def test_at_equal_seconds_depths_share_rungs() -> None:
    scheduler = build(search(scheduler="asha", compare="seconds"), "accuracy", "max", 9)
    assert tell(scheduler, "shallow", 1, 0.8, "0", 1.0) == "CONTINUE"
    assert tell(scheduler, "shallow", 2, 0.8, "0", 2.0) == "CONTINUE"
    assert tell(scheduler, "shallow", 3, 0.9, "0", 3.0) == "CONTINUE"
    assert tell(scheduler, "deep", 1, 0.85, "2", 2.9) == "CONTINUE", "better than the other one was after 1 s"
    assert tell(scheduler, "deep", 2, 0.85, "2", 5.8) == "STOP", "worse than the other one was after 3 s"
    by_depth = build(search(scheduler="asha"), "accuracy", "max", 9)
    tell(by_depth, "shallow", 1, 0.9, "0", 1.0)
    assert tell(by_depth, "deep", 1, 0.1, "2", 1.0) == "CONTINUE"


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


@pytest.mark.parametrize("compare", ["depth", "seconds"])
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(10))
def test_decisions_after_a_restart_equal_those_without_one(compare: str, mode: Any, seed: int) -> None:
    settings = search(scheduler="asha", compare=compare, reduction=2, grace=1 + seed % 2)
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
    evaluations = (Evaluation(1, 1.0, 1.0, {"accuracy": 0.9}),)
    before = TrialRecord("0000", {}, "0", "finished", evaluations)
    settings = search(scheduler="asha")
    assert tell(build(settings, "accuracy", "max", 9, [before]), "0001", 1, 0.1) == "STOP"
    confirm = replace(before, stage="confirm")
    assert tell(build(settings, "accuracy", "max", 9, [confirm]), "0001", 1, 0.1) == "CONTINUE"


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
