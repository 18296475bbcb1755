"""A trial whose state is one number, and Tune over it as the search uses it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from ray import cloudpickle, tune

from raycnn.config import SearchConfig
from raycnn.searching.records import Evaluation, TrialRecord
from raycnn.searching.schedulers import build
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


class Runs:
    """Runs trials under a scheduler; what each reported, by trial."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def __call__(
        self, scheduler: Any, trials: list[dict[str, Any]], concurrent: int | None = None
    ) -> dict[str, list[Any]]:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
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
            run_config=tune.RunConfig(storage_path=str(self.folder), name="tune", verbose=0, callbacks=[watch]),
        ).fit()
        return watch.results


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


def result(evaluation: int, objective: float, depth: str = "0", seconds: float = 0.0) -> dict[str, Any]:
    return {"evaluation": evaluation, "objective": objective, "depth": depth, "seconds": seconds, "done": False}


def of_record(name: str, *values: float | None, **changes: Any) -> TrialRecord:
    evaluations = [Evaluation(n, n, n, {"accuracy": value}) for n, value in enumerate(values, 1)]
    return TrialRecord(name, {}, "0", evaluations=tuple(evaluations), **changes)
