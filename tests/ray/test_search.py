"""A search over a small network: what it finds, that it changes no bit, and that it goes on from where it was."""

from __future__ import annotations

import json

import pytest

import raycnn
from raycnn.errors import CheckpointError
from raycnn.storage import open_store
from tests.support.runs import final_hashes

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(source, storage, name="search", **changes):
    config = {
        "run": {"name": name, "storage": str(storage)},
        "data": {"source": str(source), "val_fraction": 0.15, "test_fraction": 0.15, "stratify": True},
        "model": {"name": "timm/test_efficientnet", "weights": "none", "batchnorm": "local"},
        "augment": {"crop_scale": [0.8, 1.0]},
        "optim": {"lr": 0.005, "warmup_epochs": 0.5},
        "train": {"epochs": 2, "global_batch": 32, "chunk": 16, "checkpoint_every": 7, "log_every": 3},
        "search": {"space": {"model.unfreeze": {"grid": [0, 1, 2]}}, "confirm": [0, 0]},
    }
    config["data"]["image_size"] = 32
    return raycnn.load_config(config, changes)


@pytest.fixture(scope="module")
def searched(local_ray, digits, tmp_path_factory):
    storage = tmp_path_factory.mktemp("searched")
    config = settings(digits, storage)
    return config, raycnn.search(config)


def test_trials_of_a_pack_end_with_the_same_bits_as_each_alone(searched):
    config, _ = searched
    root = open_store(config.run.storage)
    for number, depth in enumerate((0, 1, 2)):
        alone = raycnn.load_config(config, {"run.name": f"alone-{depth}", "model.unfreeze": depth})
        raycnn.train(alone)
        packed = root.child(f"search/search/trials/{number:04d}")
        assert final_hashes(packed) == final_hashes(root.child(f"alone-{depth}"))


def test_the_answer(searched):
    config, found = searched
    trials = found["trials"]
    assert [(each["id"], each["depth"], each["status"]) for each in trials] == [
        ("0000", "0", "finished"), ("0001", "1", "finished"), ("0002", "2", "finished")
    ]  # fmt: skip
    best = max(trials, key=lambda each: each["metrics"]["accuracy"])
    assert found["best"]["metrics"]["accuracy"] == best["metrics"]["accuracy"]
    evaluation = raycnn.evaluate(config)  # the winner is the run's own checkpoint
    assert evaluation["metrics"] == found["test"]["metrics"]
    run = json.loads(open_store(config.run.storage).get("search/run.json"))
    assert run["test_looks"] == 2
    again = raycnn.search(config)
    assert again == found


def test_another_space_under_the_same_name_and_another_verb_are_refused(searched):
    config, _ = searched
    with pytest.raises(CheckpointError, match="was started by `raycnn search`"):
        raycnn.train(config)
