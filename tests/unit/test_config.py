from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raycnn.config import Config, Phase, fields, get_path, identity, identity_hash, load_config, set_path
from raycnn.errors import ConfigError


def smallest() -> dict[str, Any]:
    return {
        "run": {"name": "solar", "storage": "s3://bucket/runs"},
        "data": {"source": "s3://bucket/cells"},
        "model": {"name": "timm/tf_efficientnet_lite0"},
    }


def load(**overrides: Any) -> Config:
    return load_config(smallest(), {path.replace("__", "."): value for path, value in overrides.items()})


def refusal(path: str, value: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(smallest(), {path: value})
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("optim.lrr", "optim.lrr"),
        ("speed", "speed"),
        ("run.secret", "run.secret"),
        ("train.search.trials", "train.search"),
    ],
)
def test_unknown_fields_are_refused_by_path(path: str, where: str) -> None:
    error = refusal(path, 3)
    assert error.where == where
    assert error.what == "unknown field"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run.name", "../up"),
        ("run.name", "a\n"),
        ("run.name", ""),
        ("run.name", "x" * 81),
        ("run.storage", ""),
        ("data.source", ""),
        ("data.val_fraction", 1),
        ("data.test_fraction", -0.1),
        ("data.image_size", 7),
        ("data.bad_image_budget", -0.01),
        ("data.bad_image_budget", 1.0),
        ("data.max_pixels", 0),
        ("data.fetch_threads", 257),
        ("augment.hflip", 1.01),
        ("augment.hue", 0.6),
        ("augment.views", 0),
        ("data.resample", "uniform"),
        ("augment.crop_scale", [0, 1]),
        ("model.name", "hub/resnet50"),
        ("model.name", "timm/../resnet50"),
        ("model.weights_sha256", "A" * 64),
        ("model.unfreeze", -1),
        ("model.unfreeze", "blocks."),
        ("model.unfreeze", "2.5"),
        ("model.batchnorm", "thawed"),
        ("optim.name", "lion"),
        ("optim.lr", 0),
        ("optim.lr", float("nan")),
        ("optim.lr", float("inf")),
        ("optim.weight_decay", -1e-9),
        ("optim.momentum", 1),
        ("optim.clip_norm", 0),
        ("loss.label_smoothing", 1),
        ("train.epochs", 0),
        ("train.global_batch", 0),
        ("train.workers", 0),
        ("train.precision", "fp8"),
        ("train.patience", 0),
        ("train.metric", "top5"),
        ("evaluate.split", "all"),
        ("evaluate.step", -1),
    ],
)
def test_values_out_of_range_are_refused_by_path(path: str, value: Any) -> None:
    error = refusal(path, value)
    assert error.where.partition("[")[0] == path
    assert error.what == "invalid value"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optim.lr", "fast"),
        ("optim.lr", [1e-3]),
        ("train.workers", 1.5),
        ("train.seed", None),
        ("run.name", 2024),
        ("model.weights", 5),
        ("model.unfreeze", 1.5),
        ("optim.nesterov", "perhaps"),
        ("optim", 3),
        ("optim", None),
        ("run", []),
    ],
)
def test_values_of_another_type_are_refused_by_path(path: str, value: Any) -> None:
    assert refusal(path, value).where == path


@pytest.mark.parametrize(
    ("section", "overrides", "word"),
    [
        ("data", {"data.val_fraction": 0.5, "data.test_fraction": 0.5}, "train on"),
        ("augment", {"augment.crop_scale": [0.5, 0.2]}, "crop_scale"),
        ("augment", {"augment.crop_ratio": [2, 1]}, "crop_ratio"),
        ("augment", {"augment.erase_scale": [0.5, 0.2]}, "erase_scale"),
        ("augment", {"augment.mixup": 1, "train.global_batch": 6, "train.workers": 2}, "pairs"),
        ("augment", {"augment.views": 3, "train.global_batch": 32}, "not a multiple"),
        ("model", {"model.unfreeze": []}, "phases"),
        ("optim", {"optim.nesterov": True}, "sgd"),
        ("optim", {"optim.nesterov": True, "optim.name": "sgd", "optim.momentum": 0}, "momentum"),
        ("train", {"train.global_batch": 64, "train.workers": 3}, "multiple of workers 3"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(section: str, overrides: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(smallest(), overrides)
    assert caught.value.where.split(".")[0] == section


@pytest.mark.parametrize("workers", [1, 2, 4, 64])
def test_workers_that_divide_the_global_batch_are_fine(workers: int) -> None:
    assert load(train__global_batch=64, train__workers=workers).train.workers == workers


def test_missing_fields_are_named() -> None:
    tree = smallest()
    del tree["run"]["name"]
    with pytest.raises(ConfigError, match="missing field") as caught:
        load_config(tree)
    assert caught.value.where == "run.name"
    with pytest.raises(ConfigError, match="missing field"):
        load_config({})


def test_several_errors_are_counted() -> None:
    with pytest.raises(ConfigError, match="and 1 more"):
        load_config(smallest(), {"optim.lr": -1, "train.epochs": -1})


def test_unfreeze_is_a_number_all_a_module_or_phases() -> None:
    assert load(model__unfreeze=2).model.unfreeze == 2
    assert load(model__unfreeze="all").model.unfreeze == "all"
    assert load(model__unfreeze="blocks.6").model.unfreeze == "blocks.6"
    phases = load(model__unfreeze=[{"depth": 0, "epochs": 1}, {"depth": "all", "epochs": 2.5}]).model.unfreeze
    assert phases == (Phase(depth=0, epochs=1), Phase(depth="all", epochs=2.5))


@pytest.mark.parametrize(
    "phase",
    [
        {"depth": 0, "epochs": 0},
        {"depth": -1, "epochs": 1},
        {"depth": "very deep", "epochs": 1},
        {"depth": 0},
        {"depth": 0, "epochs": 1, "lr": 1},
        7,
    ],
)
def test_bad_phases_are_refused(phase: Any) -> None:
    assert refusal("model.unfreeze", [phase]).where.startswith("model.unfreeze")


def test_precedence_is_defaults_then_yaml_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "run: {name: solar, storage: /runs}\ndata: {source: /cells}\nmodel: {name: timm/resnet18}\n"
        "optim: {lr: 1e-2, momentum: 0.5}\ntrain: {epochs: 3}\n"
    )
    config = load_config(path, {"optim.lr": 0.5, "loss.label_smoothing": 0.1})
    assert config.optim.name == "adamw"  # default
    assert config.optim.momentum == 0.5  # YAML
    assert config.optim.lr == 0.5  # override beats YAML
    assert config.loss.label_smoothing == 0.1  # override beats default
    assert config.train.epochs == 3
    assert load_config(str(path)).optim.lr == 0.01  # YAML reads 1e-2 as text


def test_overrides_go_over_a_config_and_a_mapping_and_leave_them_alone() -> None:
    tree = smallest()
    config = load_config(tree, {"optim.lr": 0.5, "model.unfreeze": [{"depth": 1, "epochs": 1}]})
    assert tree == smallest()
    assert load_config(config) == config
    other = load_config(config, {"optim.weight_decay": 0.25})
    assert (other.optim.lr, other.optim.weight_decay) == (0.5, 0.25)
    assert config.optim.weight_decay == 0.01


def test_an_override_below_a_value_is_refused() -> None:
    assert refusal("run.name.first", "a").where == "run.name.first"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not a mapping"),
        ("- run", "not a mapping"),
        ("run: [", "not valid YAML"),
        ("run: !!python/object/apply:os.getpid []", "not valid YAML"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(path)
    assert caught.value.where == str(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read") as caught:
            load_config(path)
        assert caught.value.where == str(path)
    (tmp_path / "latin.yaml").write_bytes(b"run: \xff")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"train.virtual_shards": 6, "train.global_batch": 36}, "power of two"),
        ({"train.workers": 8}, "multiple of workers 8"),
        ({"train.workers": 3, "train.global_batch": 12}, "multiple of workers 3"),
        ({"train.global_batch": 6}, "multiple of virtual_shards 4"),
        ({"model.batchnorm": "local"}, "use model.batchnorm: frozen"),
        ({"model.batchnorm": "sync"}, "use model.batchnorm: frozen"),
    ],
)
def test_exact_training_needs_shards_that_divide_and_frozen_statistics(changes: dict[str, Any], word: str) -> None:
    load_config(smallest(), changes)
    with pytest.raises(ConfigError, match=word) as caught:
        load_config(smallest(), {"train.exact": True, **changes})
    assert identity(load(train__exact=True)) != identity(load())
    assert caught.value.where in ("train", "train.exact")


CHANGES = {
    "optim.lr": 0.5,
    "optim.weight_decay": 0.5,
    "optim.warmup_epochs": 1,
    "train.seed": 7,
    "train.global_batch": 32,
    "train.chunk": 16,
    "train.precision": "float32",
    "train.virtual_shards": 8,
    "train.micro_batch": "auto",
    "train.ema": 0.999,
    "loss.l2": 0.1,
    "optim.stage_decay": 0.5,
    "optim.step_epochs": 2,
    "optim.lr_scaling": "linear",
    "model.name": "timm/resnet18",
    "model.weights": "none",
    "model.unfreeze": 1,
    "model.batchnorm": "local",
    "model.recalibrate": "train",
    "model.head.kind": "mlp",
    "model.head.width": 64,
    "model.head.dropout": 0.5,
    "model.head.replaces": "classifier",
    "data.image_size": 160,
    "data.split_seed": 1,
    "data.val_fraction": 0.2,
    "augment.vflip": 0.5,
    "augment.rotate": 15,
    "augment.policy": "randaugment",
    "augment.erase": 0.25,
    "augment.mixup": 0.2,
    "augment.views": 2,
    "data.resample": "balanced",
    "loss.class_weights": "balanced",
    "loss.name": "focal",
    "loss.focal_gamma": 1.0,
    "loss.huber_delta": 0.5,
    "data.task": "binary",
    "loss.effective_beta": 0.9,
    "loss.logit_adjustment": 1.0,
}
KEEPS = {
    "run.name": "lunar",
    "run.storage": "/elsewhere",
    "data.source": "/copied",
    "data.fetch_threads": 3,
    "data.block_steps": 2,
    "train.workers": 2,
    "train.epochs": 20,
    "train.checkpoint_every": 7,
    "train.patience": 3,
    "train.min_delta": 0.1,
    "train.log_every": 1,
    "train.keep": 9,
    "evaluate.split": "val",
    "evaluate.thresholds": "none",
    "evaluate.step": 3,
    "predict.source": "/new",
}


@pytest.mark.parametrize("path", CHANGES)
def test_what_changes_results_changes_the_identity(path: str) -> None:
    config = load_config(smallest(), {path: CHANGES[path]})
    assert identity_hash(config) != identity_hash(load())
    before, after = identity(load()), identity(config)
    assert [name for name in before if before[name] != after[name]] == [path]


@pytest.mark.parametrize("path", KEEPS)
def test_what_does_not_change_results_keeps_the_identity(path: str) -> None:
    config = load_config(smallest(), {path: KEEPS[path]})
    assert get_path(config, path) != get_path(load(), path)
    assert identity_hash(config) == identity_hash(load())


def test_identity_does_not_depend_on_how_a_value_was_written() -> None:
    assert identity_hash(load(optim__lr="1e-3")) == identity_hash(load(optim__lr=0.001)) == identity_hash(load())
    assert identity_hash(load(optim__warmup_epochs=1)) == identity_hash(load(optim__warmup_epochs=1.0))


def test_settings_that_came_later_leave_the_hash_of_runs_without_them_as_it_was() -> None:
    assert identity_hash(load()) == "d7e059e7d79c8bd76aa6de08fbb67eccd04aabcc0737c7bf4795580c2028f66f"


def test_every_field_says_what_it_is_for() -> None:
    found = dict(fields())
    assert len(found) > 40
    assert [path for path, info in found.items() if not info.description] == []


def test_the_fixed_names_are_there() -> None:
    fixed = """run.name run.storage data.source data.val_fraction data.test_fraction data.split_seed
        data.image_size data.bad_image_budget model.name model.weights model.unfreeze model.batchnorm optim.name
        optim.lr optim.weight_decay train.epochs train.global_batch train.workers train.seed train.precision
        train.checkpoint_every train.eval_every"""
    assert set(fixed.split()) <= {path for path, _ in fields()}


def test_get_path_and_set_path_speak_the_same_address() -> None:
    tree = smallest()
    for path, value in (CHANGES | KEEPS).items():
        set_path(tree, path, value)
    config = load_config(tree)
    assert {path: get_path(config, path) for path in CHANGES | KEEPS} == CHANGES | KEEPS


def test_a_config_is_immutable() -> None:
    with pytest.raises(ValidationError):
        load().optim.lr = 2.0


def test_a_folder_is_the_one_that_the_caller_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have working directories of their own."""
    monkeypatch.chdir(tmp_path)
    storages = ("runs", "./a/../runs", "s3://bucket/runs", "/runs", "file:///runs")
    found = [load(run__storage=each).run.storage for each in storages]
    assert found == [str(tmp_path / "runs"), str(tmp_path / "runs"), "s3://bucket/runs", "/runs", "file:///runs"]
