"""Which settings decide what trials share, and the weights that they start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycnn.config import Config, load_config
from raycnn.searching.shared import share_key, start_folder, write_start
from raycnn.storage.lease import read_lease
from raycnn.storage.local import LocalStore
from raycnn.training import checkpoint
from raycnn.training.serialize import decode_weights
from raycnn.training.setup import facts_of

BASE = {
    "run": {"name": "s", "storage": "/x"},
    "data": {"source": "/y"},
    "model": {"name": "reference/lenet", "weights": "none"},
}


def config(**changes: Any) -> Config:
    return load_config(BASE, {path.replace("__", "."): value for path, value in changes.items()})


@pytest.mark.parametrize(
    ("path", "value", "one_stream", "one_start"),
    [
        ("optim__lr", 0.5, True, True),
        ("optim__name", "sgd", True, True),
        ("optim__schedule", "constant", True, True),
        ("loss__label_smoothing", 0.1, True, True),
        ("loss__class_weights", "balanced", True, True),
        ("model__unfreeze", 1, True, True),
        ("model__unfreeze", [{"depth": 0, "epochs": 1}, {"depth": 2, "epochs": 1}], True, True),
        ("model__batchnorm", "local", True, True),
        ("train__ema", 0.99, True, True),
        ("train__micro_batch", "auto", True, True),
        ("train__epochs", 3, True, True),
        ("train__workers", 2, True, True),
        ("data__source", "/z", True, True),
        ("search__trials", 3, True, True),
        ("train__global_batch", 32, False, True),
        ("train__precision", "bf16", False, True),
        ("train__eval_every", 0.5, False, True),
        ("augment__hflip", 0.0, False, True),
        ("augment__crop_scale", None, False, True),
        ("data__val_fraction", 0.2, False, True),
        ("model__head__kind", "mlp", False, False),
        ("model__recalibrate", "train", False, False),
        ("model__head__dropout", 0.5, False, False),
        ("train__seed", 1, False, False),
        ("train__chunk", 16, False, False),
        ("data__image_size", 64, False, False),
        ("model__name", "torchvision/resnet18", False, False),
        ("model__weights", "default", False, False),
        ("model__weights_sha256", "0" * 64, False, False),
    ],
)
def test_what_two_trials_share(path: str, value: Any, one_stream: bool, one_start: bool) -> None:
    one, other = config(), config(**{path: value})
    assert (share_key(one) == share_key(other)) is one_stream
    assert (start_folder(one) == start_folder(other)) is one_start


def test_where_starting_weights_lie_does_not_change_with_settings_that_came_later() -> None:
    assert start_folder(config()) == "search/start/c0669c7450817bff"


def test_a_default_is_the_same_as_that_value_written_out() -> None:
    assert share_key(config()) == share_key(config(train__global_batch=64, train__seed=0))
    assert start_folder(config()) == start_folder(config(train__seed=0))


def test_starting_weights_are_committed_once_for_all_that_start_from_them(tmp_path: Path) -> None:
    run, told = LocalStore(tmp_path), []
    for each in (config(), config(optim__lr=0.5), config(train__seed=1), config()):
        write_start(each, run, "me", facts_of(each, ("a", "b", "c")), told.append)
    assert len(told) == 2
    assert [f"search/start/{name}" for name in run.folders("search/start")] == sorted(
        [start_folder(config()), start_folder(config(train__seed=1))]
    )
    starts = [run.child(start_folder(each)) for each in (config(), config(train__seed=1))]
    heads = []
    for store in starts:
        commit = checkpoint.latest(store, read_lease(store))
        assert commit is not None
        assert commit.step == 0
        heads.append(decode_weights(checkpoint.verified(store, commit)["weights.safetensors"])["head.output.weight"])
    assert heads[0].shape == (3, 84)
    assert not heads[0].equal(heads[1])


def test_a_start_that_was_cut_off_is_written_by_the_next_job(tmp_path: Path) -> None:
    run = LocalStore(tmp_path)
    store = run.child(start_folder(config()))
    write_start(config(), run, "me", facts_of(config(), ("a", "b")), lambda line: None)
    (name,) = store.folders("checkpoints")
    store.delete([f"checkpoints/{name}/MANIFEST.json"])
    write_start(config(), run, "you", facts_of(config(), ("a", "b")), lambda line: None)
    record = read_lease(store)
    assert (record.owner, record.epoch) == ("you", 2)
    assert checkpoint.latest(store, record) is not None
