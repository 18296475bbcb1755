"""Compiled runs: one that is started twice ends with the bits of one that is not, trials with those of each alone."""

from __future__ import annotations

import pytest

import raycnn
from raycnn.storage import open_store
from raycnn.training import checkpoint
from raycnn.training.serialize import decode_weights
from tests.support.runs import final_hashes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def settings(source, storage, name, **changes):
    config = {
        "run": {"name": name, "storage": str(storage)},
        "data": {"source": str(source), "val_fraction": 0.15, "test_fraction": 0.15, "stratify": True},
        "model": {"name": "reference/lenet", "weights": "none", "unfreeze": 1},
        "augment": {"crop_scale": [0.8, 1.0]},
        "optim": {"lr": 0.005, "schedule": "constant", "warmup_epochs": 0},
        "train": {"epochs": 4, "global_batch": 32, "chunk": 16, "workers": 2, "checkpoint_every": 7, "log_every": 3},
        "search": {"space": {"model.unfreeze": {"grid": [0, 1]}}, "confirm": [0, 0]},
        "cache": {"folder": str(storage)},
    }
    return raycnn.load_config(config, changes)


def weights(store):
    commit = checkpoint.latest(store, None)
    return decode_weights(checkpoint.verified(store, commit, ["weights.safetensors"])["weights.safetensors"])


def test_a_compiled_run_goes_on_with_the_same_bits(digits, tmp_path):
    whole = settings(digits, tmp_path, "whole", **{"train.compile": "all"})
    raycnn.train(whole)
    parts = settings(digits, tmp_path, "parts", **{"train.compile": "all"})
    raycnn.train(raycnn.load_config(parts, {"train.epochs": 2}))
    assert raycnn.train(parts)["resumed_from"]
    root = open_store(str(tmp_path))
    ends = [final_hashes(root.child(name)) for name in ("whole", "parts")]
    for name in ("step", "weights.safetensors", "optimizer.pt"):
        assert ends[0][name] == ends[1][name]
    eager = settings(digits, tmp_path, "eager")
    raycnn.train(eager)
    assert weights(root.child("whole")).keys() == weights(root.child("eager")).keys()


@pytest.mark.parametrize("reuse", ["share", "activations"])
def test_compiled_trials_of_a_pack_end_with_the_bits_of_each_alone(reuse, digits, tmp_path):
    changes = {"train.compile": "prefix", "train.workers": 1, "train.epochs": 2, "search.reuse": reuse}
    config = settings(digits, tmp_path, "search", **changes)
    raycnn.search(config)
    root = open_store(str(tmp_path))
    for number, depth in enumerate((0, 1)):
        raycnn.train(raycnn.load_config(config, {"run.name": f"alone-{depth}", "model.unfreeze": depth}))
        packed, alone = (
            final_hashes(root.child(folder)) for folder in (f"search/search/trials/{number:04d}", f"alone-{depth}")
        )
        for name in ("step", "weights.safetensors", "optimizer.pt", "state.json"):
            assert packed[name] == alone[name]
