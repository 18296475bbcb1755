"""What follows from data.task and the labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raycnn.config import load_config
from raycnn.data.index import build_index
from raycnn.data.manifest import read_index
from raycnn.data.transforms import Preprocessing
from raycnn.errors import ConfigError, DataError, RaycnnError
from raycnn.searching.answer import goal
from raycnn.searching.settings import settings_of
from raycnn.storage import open_store
from raycnn.training.asked import chosen_by, of_labels, pinned_metric, problem_of, settled, settled_by, usual_metric
from raycnn.training.problems import (
    ONE_LABEL,
    Binary,
    MultiLabel,
    OneLabel,
    Problem,
    Regression,
    from_json,
)
from raycnn.training.ranks import Ranks
from raycnn.training.setup import INDEX_COLUMNS, Body, facts_of, loss_of
from raycnn.training.state import NetworkFacts, TrainState
from tests.support.images import encode, pixels

EVERY: list[Problem] = [OneLabel(), Binary(), MultiLabel(2), Regression(30.0, 10.0)]


def config(**changes: Any) -> Any:
    tree = {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "reference/lenet"}}
    return load_config(tree, {path.replace("__", "."): value for path, value in changes.items()})


def indexed(folder: Path, labels: list[str], task: str = "auto", name: str = "rows.csv") -> tuple[Any, Any]:
    """(config, index as a worker reads it) of a manifest of small images, every third one for validation."""
    lines = ["key,label,split"]
    for number, label in enumerate(labels):
        (folder / f"{number}.png").write_bytes(encode(pixels(number, 32, 32), "PNG"))
        lines.append(f"{number}.png,{label},{'val' if number % 3 == 2 else 'train'}")
    (folder / name).write_text("\n".join(lines) + "\n")
    made = config(run__storage=f"{folder}/runs", data__source=f"{folder}/{name}", data__task=task)
    storage = open_store(made.run.storage)
    index = build_index(made, storage, lambda done, total: None)
    return made, read_index(storage, index.hash, INDEX_COLUMNS)


def test_what_the_labels_are_decides(tmp_path: Path) -> None:
    for number, (labels, expected) in enumerate(
        [
            (["a", "b", "a"] * 2, OneLabel()),
            (["1", "2", "1"] * 2, OneLabel()),
            (["a;b", "b", ""] * 2, MultiLabel(2)),
            (["1.5", "2.5", "9"] * 2, Regression(2.0, 0.5)),  # of the training rows
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert problem_of(*indexed(folder, labels)) == expected


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        ("regression", ["1", "3", "9"] * 2, Regression(2.0, 1.0)),
        ("binary", ["no", "yes", "no"] * 2, Binary()),
        ("multi-label", ["a", "b", "a"] * 2, MultiLabel(2)),
        ("single-label", ["a;b", "b", "b"] * 2, ONE_LABEL),  # a name like any other
    ],
)
def test_or_the_task_does(task: str, labels: list[str], expected: Problem, tmp_path: Path) -> None:
    assert problem_of(*indexed(tmp_path, labels, task)) == expected


def test_targets(tmp_path: Path) -> None:
    made, index = indexed(tmp_path, ["b;a", "b", "", "a", ""])
    problem, rows = problem_of(made, index), index.rows("train")
    places = np.array([3, 0, 0])
    by_key = {"0.png": [1, 1], "1.png": [0, 1], "3.png": [1, 0], "4.png": [0, 0]}
    keys = rows["key"].to_pylist()
    assert problem.targets(rows, places).tolist() == [by_key[keys[place]] for place in places]
    counts = problem.counts(rows, index.classes)
    assert counts is not None
    assert counts.tolist() == [[2, 2], [2, 2]]
    one = pa.table({"label": [1, 0, 1]})
    assert MultiLabel(2).targets(one, np.array([0, 1])).tolist() == [[0, 1], [1, 0]]
    assert Binary().targets(one, np.array([0, 1])).tolist() == [[1], [0]]
    of_two = Binary().counts(one, "ab")
    assert of_two is not None
    assert of_two.tolist() == [[1, 2]]
    assert Regression(3.0, 2.0).targets(pa.table({"value": [3.0, 7.0]}), np.array([1, 0])).tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("task", "kind", "classes", "what"),
    [
        ("single-label", "classes", "ab", "the labels are lists of classes, and single-label needs one class each"),
        ("binary", "class", "abc", "binary needs two classes, and there are 3"),
        ("multi-label", "number", "", "the labels are numbers"),
        ("regression", "classes", "ab", "needs numbers"),
    ],
)
def test_labels_that_do_not_do(task: str, kind: Any, classes: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        of_labels(task, kind, classes)
    assert caught.value.where == "data.task"


def test_text_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels of type string"):
        indexed(tmp_path, ["a", "b", "a"] * 2, "regression")


@pytest.mark.parametrize(
    ("problem", "metric", "mode"),
    [
        (ONE_LABEL, "accuracy", "max"),
        (Binary(), "accuracy", "max"),
        (MultiLabel(2), "map", "max"),
        (Regression(), "rmse", "min"),
    ],
)
def test_the_metric_follows_unless_it_is_set(problem: Problem, metric: str, mode: str) -> None:
    usual = pinned_metric(problem, {"train.metric": "loss"})
    assert settled(config(), problem, usual).train.metric == metric
    assert goal(settled(settings_of(search()), problem, usual)) == (metric, mode)
    assert settled(config(train__metric="loss"), problem, usual).train.metric == "loss"
    assert goal(settled(settings_of(search(train__metric="loss")), problem, usual)) == ("loss", "min")
    assert settled(config(), ONE_LABEL, "accuracy") == config()


@pytest.mark.parametrize("task", ["single-label", "binary"])
def test_classes_of_unequal_size_are_counted_alike(tmp_path: Path, task: str) -> None:
    made, uneven = indexed(tmp_path, ["a"] * 3 + ["b"] * 9, task)
    problem = problem_of(made, uneven)
    assert usual_metric(problem, uneven) == "macro_f1"
    assert usual_metric(problem, indexed(tmp_path, ["a", "b"] * 6, task)[1]) == "accuracy"
    chosen = settled(config(), problem, "macro_f1")
    assert "macro_f1, since" in chosen_by(chosen, config())[0]
    assert chosen_by(settled(config(train__metric="loss"), problem, "macro_f1"), config(train__metric="loss")) == []


@pytest.mark.parametrize("decided", [{"train.patience": 2}, {"optim.schedule": "plateau"}])
def test_folds_have_validation_rows_where_the_index_has_none(tmp_path: Path, decided: dict[str, Any]) -> None:
    index = indexed(tmp_path, ["a", "b"] * 6)[1]
    index = replace(index, manifest=index.rows("train"))
    with pytest.raises(ConfigError, match="no validation rows to decide by"):
        settled_by(load_config(config(), decided), index)
    settled_by(load_config(config(), decided | {"train.folds": 3}), index)


def test_a_run_keeps_the_metric_that_it_went_by(tmp_path: Path) -> None:
    assert pinned_metric(ONE_LABEL, {"train.metric": "macro_f1"}) == "macro_f1"
    assert pinned_metric(ONE_LABEL, {"train.metric": "accuracy"}) == "accuracy"
    assert pinned_metric(Regression(), {"train.metric": "macro_f1"}) == "rmse"


def search(**changes: Any) -> Any:
    return config(search__space={"optim.lr": {"grid": [0.1, 0.2]}}, **changes)


@pytest.mark.parametrize(
    ("problem", "changes", "where"),
    [
        (MultiLabel(2), {"train__metric": "accuracy"}, "train.metric"),
        (ONE_LABEL, {"search__metric": "rmse"}, "search.metric"),
        (ONE_LABEL, {"loss__name": "bce"}, "loss.name"),
        (Binary(), {"loss__name": "mse"}, "loss.name"),
        (Regression(), {"loss__name": "focal"}, "loss.name"),
        (Regression(), {"search__space": {"loss.name": {"choice": ["mse", "bce"]}}}, "loss.name"),
        (Regression(), {"loss__label_smoothing": 0.1}, "loss"),
        (Regression(), {"loss__class_weights": "balanced"}, "loss"),
        (Regression(), {"loss__logit_adjustment": 1.0}, "loss"),
        (MultiLabel(2), {"data__resample": "balanced"}, "data.resample"),
    ],
)
def test_settings_of_other_tasks(problem: Problem, changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settled(config(**changes), problem, problem.metrics[0])
    assert caught.value.where == where
    assert caught.value.fix


@pytest.mark.parametrize("problem", EVERY, ids=lambda problem: problem.task)
def test_a_step_with_each_loss_lowers_it(problem: Problem) -> None:
    table = pa.table({"label": [0, 1, 1, 0] * 2, "value": [10.0, 50.0, 40.0, 20.0] * 2})
    for name in ("auto", *problem.losses):
        made = config(loss__name=name, optim__name="sgd", optim__lr=0.01, train__chunk=4)
        facts, cpu = facts_of(made, ("no", "yes"), problem), torch.device("cpu")
        body = Body(made, facts, cpu)
        learner = body.learner(made, loss=loss_of(made, facts, None, cpu), ranks=Ranks())
        learner.enter("all")
        images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
        inputs = body.prefix.taps(images, [learner.base])[learner.base]
        targets = torch.from_numpy(problem.targets(table, np.arange(8)))
        losses = []
        for step in range(3):
            losses.append(float(learner.backward(inputs, targets, torch.ones(8, dtype=torch.bool), 8, step).sum()))
            learner.step(0.01)
        assert losses[2] < losses[0]


@pytest.mark.parametrize("problem", EVERY, ids=lambda problem: problem.task)
def test_a_state_keeps_it(problem: Problem) -> None:
    view = Preprocessing(8, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    classes = () if isinstance(problem, Regression) else ("a", "b")
    state = TrainState(NetworkFacts("timm/x", classes, view, 4, problem=problem), 7)
    assert TrainState.decode(state.encode()) == state
    assert from_json(problem.as_json()) == problem
    assert (b'"problem"' in state.encode()) == (problem != ONE_LABEL)  # as states were before


def test_answers() -> None:
    logits = np.array([[2.0, -1.0], [-3.0, 0.5], [1.0, 1.0]], np.float32)
    one, several = OneLabel().answers(logits, "ab"), MultiLabel(2).answers(logits, "ab")
    assert one["label"] == ["a", "b", "a"]
    assert several["labels"] == [["a"], ["b"], ["a", "b"]]
    np.testing.assert_allclose(several["probabilities"], 1 / (1 + np.exp(-logits)), rtol=1e-6)
    two = Binary().answers(logits[:, :1], "ab")
    assert two["label"] == ["b", "a", "b"]
    np.testing.assert_allclose(np.array(two["probabilities"])[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-6)
    assert Regression(30.0, 10.0).answers(logits[:, :1], ())["value"] == [50.0, 0.0, 40.0]
    assert Regression(30.0, 10.0).named(logits[:, :1], ())[0] == {"value": 50.0}
    for problem in EVERY:
        width = problem.num_outputs("ab")
        assert list(problem.answers(logits[:, :width], "ab")) == list(problem.columns)


def test_an_unreadable_task_of_a_state_is_refused() -> None:
    view = Preprocessing(8, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    state = TrainState(NetworkFacts("timm/x", ("a",), view, 4, problem=MultiLabel(1)))
    for bad in (b'"task": "sorting"', b'"task": "binary"', b'"task": 3'):
        with pytest.raises(RaycnnError, match="not a training state"):
            TrainState.decode(state.encode().replace(b'"task": "multi-label"', bad))
