from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from raycnn.config import Config, load_config
from raycnn.errors import ConfigError
from raycnn.searching.space import cells, check, contains, num_trials, options


def config(space: dict[str, Any], **search: Any) -> Config:
    return load_config(
        {
            "run": {"name": "solar", "storage": "/runs"},
            "data": {"source": "/cells"},
            "model": {"name": "timm/resnet18"},
            "train": {"global_batch": 64, "workers": 2},
            "search": {"space": space, **search},
        }
    )


def refusal(space: dict[str, Any], **search: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check(config(space, **search))
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


LR = {"optim.lr": {"loguniform": [1e-4, 1e-1]}}


@pytest.mark.parametrize(
    "space",
    [
        {"optim.lr": {"loguniform": [1e-4, 1e-1]}, "model.unfreeze": {"choice": [0, 1, "all"]}},
        {"model.unfreeze": {"choice": [[{"depth": 0, "epochs": 1}, {"depth": 2, "epochs": 3}], 1]}},
        {"model.unfreeze": {"randint": [0, 4]}},
        {"model.unfreeze": {"quniform": [0, 4, 2]}},
        {"train.epochs": {"uniform": [1, 5]}},
        {"train.global_batch": {"quniform": [16, 128, 16]}},
        {"optim.clip_norm": {"choice": [None, 1.0]}},
        {"optim.lr": {"grid": ["1e-3", "1e-2"]}},
        {"optim.nesterov": {"grid": [False]}, "optim.name": {"grid": ["sgd", "adamw"]}},
        {"train.seed": {"randint": [0, 2**40]}},
        {"data.image_size": {"choice": [96, 128]}, "model.weights": {"choice": ["none", "default"]}},
    ],
)
def test_what_the_fields_take_can_be_searched(space: dict[str, Any]) -> None:
    check(config(space))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("optim.lrr", "did you mean optim.lr?"),
        ("model.unfreze", "did you mean model.unfreeze?"),
        ("lr", "did you mean optim.lr?"),
        ("speed", "--help"),
        ("optim", "unknown setting optim"),
        ("run.name", "does not change how a trial trains"),
        ("search.seed", "does not change how a trial trains"),
        ("evaluate.step", "does not change how a trial trains"),
        ("predict.source", "does not change how a trial trains"),
        ("train.workers", "where, how fast or how often"),
        ("train.patience", "where, how fast or how often"),
        ("data.source", "where, how fast or how often"),
        ("data.split_seed", "one set of rows"),
        ("data.val_fraction", "one set of rows"),
        ("train.metric", "compared by it"),
        ("train.eval_every", "compared by it"),
    ],
)
def test_settings_that_cannot_be_searched_are_refused_with_the_reason(path: str, words: str) -> None:
    assert words in str(refusal({path: {"choice": [1, 2]}}))


@pytest.mark.parametrize(
    ("path", "distribution", "words"),
    [
        ("optim.lr", {"uniform": [0, 1]}, "optim.lr cannot be 0.0"),
        ("optim.momentum", {"uniform": [0.5, 1]}, "optim.momentum cannot be 1.0"),
        ("loss.label_smoothing", {"quniform": [0, 1, 0.25]}, "cannot be 1.0"),
        ("model.unfreeze", {"randint": [-1, 3]}, "cannot be -1"),
        ("optim.name", {"choice": ["sgd", "lion"]}, "cannot be lion"),
        ("optim.name", {"uniform": [0, 1]}, "cannot be 0.0"),
        ("model.unfreeze", {"uniform": [0, 3]}, "takes no fractions"),
        ("train.global_batch", {"loguniform": [16, 64]}, "randint: [low, high)"),
        ("train.global_batch", {"quniform": [15, 45, 15]}, "multiple of workers 2"),
        ("train.global_batch", {"randint": [16, 33]}, "multiple of workers 2"),
        ("optim.nesterov", {"grid": [False, True]}, "momentum"),
        ("optim.lr", {"choice": [0.1, {"loguniform": [1e-4, 1e-1]}]}, "depends on another"),
        ("model.unfreeze", {"grid": [[{"depth": {"choice": [0, 1]}, "epochs": 1}]]}, "depends on another"),
    ],
)
def test_values_that_their_field_would_refuse_are_refused(path: str, distribution: Any, words: str) -> None:
    error = refusal({path: distribution})
    assert words in str(error)
    assert error.where == f"search.space.{path}"


def test_values_count_over_the_whole_config_and_cells_together() -> None:
    space = {"optim.nesterov": {"grid": [False, True]}}
    sgd = load_config(config(space), {"optim.name": "sgd"})
    check(sgd)
    together = load_config(sgd, {"search.space": {**space, "optim.momentum": {"grid": [0.9, 0.0]}}})
    with pytest.raises(ConfigError, match=r"optim.momentum 0.0, optim.nesterov True"):
        check(together)


def test_an_empty_space_is_refused() -> None:
    assert "nothing to search" in str(refusal({}))


def test_more_trials_than_cells_are_refused() -> None:
    grid = {"model.unfreeze": {"grid": [0, 1]}}
    assert "at most 2" in str(refusal(grid, trials=3))
    check(config(grid, trials=2))
    check(config({**grid, **LR}, trials=3))


@pytest.mark.parametrize("path", ["model.unfreeze", "model.name", "data.image_size", "train.seed", "optim.name"])
def test_pbt_varies_only_what_can_change_in_mid_run(path: str) -> None:
    values = {"model.name": ["timm/resnet18"], "data.image_size": [96], "optim.name": ["sgd"]}.get(path, [0, 1])
    assert "mid-run" in str(refusal({**LR, path: {"choice": values}}, scheduler="pbt"))


def test_pbt_needs_a_population_and_no_tpe() -> None:
    space = {**LR, "loss.label_smoothing": {"uniform": [0, 0.2]}}
    check(config(space, scheduler="pbt", trials=4))
    check(config(space, scheduler="pbt"))
    assert "4 or more" in str(refusal(space, scheduler="pbt", trials=3))
    assert "do not go together" in str(refusal(space, scheduler="pbt", searcher="tpe"))


def test_tpe_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    check(config(LR, searcher="tpe"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'raycnn[search]'" in str(refusal(LR, searcher="tpe"))


@pytest.mark.parametrize(
    ("space", "trials", "expected"),
    [
        ({"optim.lr": {"grid": [1, 2, 3]}, "model.unfreeze": {"grid": [0, 1]}}, None, 6),
        ({**LR, "model.unfreeze": {"grid": [0, 1]}}, None, 16),
        ({**LR, "train.seed": {"grid": list(range(20))}}, None, 20),
        ({**LR, "model.unfreeze": {"grid": [0, 1]}}, 5, 5),
    ],
)
def test_number_of_trials(space: Any, trials: int | None, expected: int) -> None:
    assert num_trials(config(space, trials=trials).search) == expected


def test_cells_cross_the_grids_in_an_order_of_their_own() -> None:
    grids = {
        "optim.lr": {"grid": ["1e-3", 0.1]},
        "model.unfreeze": {"grid": [0, "all"]},
        "optim.momentum": {"choice": [0]},
    }
    expected = [
        {"model.unfreeze": 0, "optim.lr": 0.001},
        {"model.unfreeze": 0, "optim.lr": 0.1},
        {"model.unfreeze": "all", "optim.lr": 0.001},
        {"model.unfreeze": "all", "optim.lr": 0.1},
    ]
    assert cells(config(grids).search.space) == expected
    assert cells(config(dict(reversed(grids.items()))).search.space) == expected
    assert cells(config(LR).search.space) == [{}]


def test_options_of_steps_are_the_multiples_within_the_bounds() -> None:
    space = config(
        {
            "train.global_batch": {"quniform": [15, 66, 16]},
            "loss.label_smoothing": {"quniform": [0.1, 0.3, 0.1]},
            "model.unfreeze": {"randint": [1, 4]},
        }
    ).search.space
    assert options(space["train.global_batch"]) == [16, 32, 48, 64]
    assert all(type(value) is int for value in options(space["train.global_batch"]))
    assert options(space["loss.label_smoothing"]) == pytest.approx([0.1, 0.2, 0.3])
    assert list(options(space["model.unfreeze"])) == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "inside"),
    [
        ({"optim.lr": 1e-4, "model.unfreeze": 1}, True),
        ({"optim.lr": 1e-5, "model.unfreeze": 1}, False),
        ({"optim.lr": 1e-3, "model.unfreeze": 3}, False),
        ({"optim.lr": 1e-3, "model.unfreeze": True}, False),
        ({"optim.lr": "fast", "model.unfreeze": 1}, False),
        ({"optim.lr": 1e-3}, False),
        ({"optim.lr": 1e-3, "model.unfreeze": 1, "optim.momentum": 0.9}, False),
    ],
)
def test_contains(values: dict[str, Any], inside: bool) -> None:
    assert contains(config({**LR, "model.unfreeze": {"randint": [0, 3]}}).search.space, values) == inside
