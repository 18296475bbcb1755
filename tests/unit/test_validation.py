"""Evaluation in training: every row once, and sums that do not depend on who scored what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raycnn.config import load_config
from raycnn.storage.cache import Cache
from raycnn.training import feed as feeds
from raycnn.training.metrics import classification_metrics
from raycnn.training.problems import Binary, MultiLabel, OneLabel, Problem, Regression
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, facts_of
from raycnn.training.validation import _in_row_order, validate
from tests.support.feeds import CPU, World


@pytest.mark.parametrize("problem", [OneLabel(), Binary(), MultiLabel(5), Regression(3.0, 0.7)])
def test_sums_run_in_row_order_whoever_scored_the_rows(problem: Problem) -> None:
    random, width = np.random.default_rng(0), problem.num_outputs(tuple("abcde"))
    logits = (random.normal(size=(300, width)) * 10.0 ** random.integers(-3, 4, (300, 1))).astype(np.float32)
    label = random.integers(0, 2 if width == 1 else 5, 300)
    lists = [sorted(set(random.integers(0, 5, random.integers(4)).tolist())) for _ in range(300)]
    columns = {"label": label, "value": random.normal(size=300)}
    table = pa.table(columns | ({"labels": lists} if isinstance(problem, MultiLabel) else {}))
    whole = _in_row_order([(np.arange(300), [logits])], 0, table, problem, "f1")
    assert tuple(whole.metrics) == problem.metrics
    assert whole.metrics == problem.measure(logits, problem.targets(table, np.arange(300)))
    sums = set()
    for seed in range(5):
        rows = np.random.default_rng(seed).permutation(300)
        parts: list[Any] = [(part, [logits[part]]) for part in np.array_split(rows, 3)]
        assert _in_row_order(parts, 0, table, problem, "f1") == whole
        sums.add(str(problem.measure(logits[rows], problem.targets(table, rows))))
    assert len(sums) > 1, "these values do not show the order of a sum"


def test_every_readable_row_counts_once_and_padding_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "images", Cache(tmp_path / "cache", 0), total=1)
    world.folder.mkdir()
    monkeypatch.setattr(feeds, "stream", world.stream)
    run = {"run": {"name": "r", "storage": str(tmp_path)}, "data": {"source": "/y"}}
    config = load_config({**run, "model": {"name": "reference/lenet"}, "train": {"chunk": 4}})
    body, task = Body(config, facts_of(config, ("a", "b", "c")), CPU), world.task()
    learner = body.learner(config, Ranks(), None)
    learner.enter(0)
    with torch.no_grad():
        for parameter in learner.module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    feed = feeds.Feed(task, body.prefix, CPU, Ranks(), 1)
    ((found, _),) = validate([learner], feed, Ranks())

    readable = np.array([row for row in range(6) if row != 3])  # the one that is broken
    images = task.scanner.read(task.validation, readable, np.zeros_like(readable)).images_NHWC
    with learner.evaluating() as network:
        inputs = body.prefix.taps(torch.from_numpy(images), {learner.base})[learner.base]
        logits = network(inputs).cpu().numpy()
    expected = classification_metrics(logits, task.validation["label"].to_numpy()[readable])
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
