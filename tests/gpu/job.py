"""The main job, its second start and a search: what they must come to, and their figures."""

from __future__ import annotations

import json
import math
from typing import Any

from raycnn import verbs
from raycnn.config import Config, load_config
from raycnn.storage import open_store
from tests.bench.command import Row
from tests.gpu.case import Case


def start(case: Case) -> list[Row]:
    """The first half of the epochs."""
    config = _first_half(case.job)
    found = verbs.train(config)
    assert found["status"] == "finished", found
    assert found["resumed_from"] is None, found
    return [_speed("main job, first half", found), _losses(config)]


def resume(case: Case) -> list[Row]:
    """All epochs: goes on where the first start ended."""
    steps = verbs.train(_first_half(case.job))["steps"]
    found = verbs.train(case.job)
    assert found["resumed_from"] == steps < found["steps"], found
    return [_speed(f"main job, from step {steps} on", found), _losses(case.job)]


def evaluate(case: Case) -> list[Row]:
    """On the test split, with the best checkpoint."""
    metrics = verbs.evaluate(case.job)["metrics"]
    assert math.isfinite(metrics["loss"]), metrics
    return [_row("test accuracy of the main job", f"{metrics['accuracy']:.3f}")]


def search(case: Case) -> list[Row]:
    """Every trial ends, with finite metrics."""
    found = verbs.search(case.search)
    trials = [trial for trial in found["trials"] if trial["stage"] == "search"]
    for trial in trials:
        assert math.isfinite(trial["metrics"]["loss"]), trial
    assert found["best"] is not None, found
    return [_row(f"search of {len(trials)} trials, s", f"{found['seconds']:.0f}")]


def _first_half(config: Config) -> Config:
    return load_config(config, {"train.epochs": config.train.epochs / 2})


def _speed(what: str, found: dict[str, Any]) -> Row:
    seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in found["seconds"].items())
    return _row(f"{what}, images/s", f"{found['images_per_second']:.0f}", f"s: {seconds}")


def _losses(config: Config) -> Row:
    log = open_store(f"{config.run.storage}/{config.run.name}").get("metrics.jsonl").splitlines()
    losses = [line["loss"] for line in map(json.loads, log) if line.get("loss") is not None]
    assert losses, "no losses were logged"
    assert all(map(math.isfinite, losses)), losses
    return _row("its training loss, first and last that was logged so far", f"{losses[0]:.3f}, {losses[-1]:.3f}")


def _row(what: str, figure: str, beside: str = "-") -> Row:
    return what, figure, beside, "-", "-"
