"""weights: run:NAME: run.json pins which checkpoint of the parent a run starts from, whatever comes after it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raycnn.config import Config, load_config
from raycnn.errors import CheckpointError
from raycnn.models.zoo import build
from raycnn.searching.shared import start_folder, write_start
from raycnn.storage import Store, open_store
from raycnn.storage.lease import adopt, read_lease
from raycnn.training import checkpoint
from raycnn.training.recorder import Run
from raycnn.training.run import create_run, read_run
from raycnn.training.serialize import decode_weights, encode_optimizer, encode_weights
from raycnn.training.setup import facts_of
from raycnn.training.start import first_commit
from raycnn.training.state import TrainState

CLASSES = ("a", "b", "c")
Weights = dict[str, Tensor]


def config(storage: Path, name: str, weights: str = "none") -> Config:
    tree = {
        "run": {"name": name, "storage": str(storage)},
        "data": {"source": "/y"},
        "model": {"name": "reference/lenet", "weights": weights},
    }
    return load_config(tree)


def store_of(settings: Config) -> Store:
    return open_store(settings.run.storage).child(settings.run.name)


def trained(settings: Config, step: int, accuracy: float, classes: tuple[str, ...] = CLASSES) -> Weights:
    """Commit an evaluated step of a run; its weights."""
    store = store_of(settings)
    create_run(settings, store, f"index of {settings.run.name}", classes)
    record = read_lease(store) if store.list() and read_lease(store).epoch else adopt(store, "me", lambda held: 0)
    weights = build("reference/lenet", len(classes), seed=step).module.state_dict()
    state = replace(TrainState(facts_of(settings, classes)), step=step).evaluated({"accuracy": accuracy})
    files = {"weights.safetensors": encode_weights(weights), "optimizer.pt": encode_optimizer({})}
    Run(store, settings, record, 1).commit(state, lambda: files, [], evaluated=True)
    return weights


def begun(store: Store) -> Weights:
    commit = checkpoint.latest(store, read_lease(store))
    assert commit is not None
    return decode_weights(checkpoint.verified(store, commit)["weights.safetensors"])


def begin(settings: Config, classes: tuple[str, ...]) -> list[str]:
    store, told = store_of(settings), []
    first_commit(
        settings, store, adopt(store, "me", lambda held: -1), facts_of(settings, classes), told.append, read_run(store)
    )
    return told


def test_a_run_names_its_parent_and_starts_from_that_checkpoint_though_a_better_one_has_come(tmp_path: Path) -> None:
    source, target = config(tmp_path, "source"), config(tmp_path, "target", "run:source")
    weights = trained(source, 10, 0.5)
    create_run(target, store_of(target), "index", CLASSES)
    later = trained(source, 20, 0.9)
    begin(target, CLASSES)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in begun(store_of(target)).items())
    assert not torch.equal(weights["c1.0.weight"], later["c1.0.weight"])
    told, of_source = tree(target)["parent"], tree(source)
    assert told["run"] == "source"
    assert told["step"] == 10
    assert told["checkpoint"].startswith("step-00000010.")
    assert told["index"] == "index of source"
    assert {name: told[name] for name in ("identity_hash", "versions", "parent")} == {
        name: of_source[name] for name in ("identity_hash", "versions", "parent")
    }
    assert len(told["weights"]) == 64


def test_the_whole_line_is_told(tmp_path: Path) -> None:
    first, second, third = (
        config(tmp_path, name, weights) for name, weights in (("a", "none"), ("b", "run:a"), ("c", "run:b"))
    )
    for step, each in enumerate((first, second), 1):
        trained(each, step, 0.5)
    create_run(third, store_of(third), "index", CLASSES)
    told = tree(third)["parent"]
    assert (told["run"], told["parent"]["run"], told["parent"]["parent"]) == ("b", "a", None)


def test_another_number_of_classes_gives_a_new_class_layer_on_the_parent_s_body(tmp_path: Path) -> None:
    source, target = config(tmp_path, "source"), config(tmp_path, "target", "run:source")
    weights = trained(source, 10, 0.5)
    create_run(target, store_of(target), "index", ("x", "y"))
    (line,) = begin(target, ("x", "y"))
    assert "new class layer head.output" in line
    for name, tensor in begun(store_of(target)).items():
        if name.startswith("head.output"):
            assert tensor.shape[0] == 2
        else:
            assert torch.equal(tensor, weights[name])


def test_a_parent_that_is_not_there_leaves_no_run_behind(tmp_path: Path) -> None:
    target = config(tmp_path, "target", "run:sauce")
    with pytest.raises(CheckpointError, match="no such run"):
        create_run(target, store_of(target), "index", CLASSES)
    assert read_run(store_of(target)) is None


def test_a_run_goes_on_without_its_parent(tmp_path: Path) -> None:
    source, target = config(tmp_path, "source"), config(tmp_path, "target", "run:source")
    trained(source, 10, 0.5)
    create_run(target, store_of(target), "index", CLASSES)
    before = store_of(target).get("run.json")
    store_of(source).delete([entry.key for entry in store_of(source).list()])
    create_run(target, store_of(target), "index", CLASSES)
    assert store_of(target).get("run.json") == before
    with pytest.raises(CheckpointError, match="another index"):
        create_run(target, store_of(target), "other", CLASSES)


def test_trials_start_from_what_their_search_is_pinned_to(tmp_path: Path) -> None:
    source, search = config(tmp_path, "source"), config(tmp_path, "search", "run:source")
    weights, run = trained(source, 10, 0.5), store_of(search)
    create_run(search, run, "index", CLASSES, "search")
    trained(source, 20, 0.9)
    write_start(search, run, "me", facts_of(search, CLASSES), lambda line: None)
    start = begun(run.child(start_folder(search)))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in start.items())
    create_run(search, run.child("search/trials/0000"), "index", CLASSES, told=read_run(run))
    assert json.loads(run.get("search/trials/0000/run.json"))["parent"] == tree(search)["parent"]


def test_the_parent_of_an_older_run_is_known_by_its_name_alone(tmp_path: Path) -> None:
    settings = config(tmp_path, "old")
    trained(settings, 1, 0.5)
    store_of(settings).put("run.json", json.dumps(tree(settings) | {"parent": "source"}).encode())
    facts = read_run(store_of(settings))
    assert facts is not None
    assert facts.parent == {"run": "source"}


def tree(settings: Config) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(store_of(settings).get("run.json"))
    return loaded
