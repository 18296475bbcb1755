"""What optimisation keeps beside the weights survives a kill, and what is evaluated is what is loaded."""

from __future__ import annotations

import threading

import pytest
import torch

import raycnn
from raycnn.storage import open_store
from raycnn.training import checkpoint
from raycnn.training.serialize import decode_optimizer, decode_weights
from tests.ray.test_train import kill_one_worker, settings
from tests.support.runs import final_hashes, metrics

pytestmark = pytest.mark.usefixtures("local_ray")

ALL = {
    "optim.name": "rmsprop",
    "optim.lr": 0.001,
    "optim.warmup_epochs": 0,
    "optim.schedule": "onecycle",
    "optim.stage_decay": 0.5,
    "loss.l1": 1e-5,
    "loss.l2": 1e-4,
    "train.workers": 2,
    "train.micro_batch": 6,
    "train.ema": 0.95,
}


@pytest.mark.slow
def test_a_killed_worker_changes_no_bit_of_means_passes_cycles_and_stages(digits, tmp_path):
    whole = settings(digits, tmp_path, "whole", **ALL)
    trained = raycnn.train(whole)
    store = open_store(str(tmp_path / "killed"))
    victim = threading.Thread(target=kill_one_worker, args=(store,))
    victim.start()
    raycnn.train(raycnn.load_config(whole, {"run.name": "killed"}))
    victim.join()
    undisturbed = open_store(str(tmp_path / "whole"))
    assert final_hashes(store) == final_hashes(undisturbed)
    assert max(int(name[-3:]) for name in store.folders("checkpoints")) > 2  # the group was started twice

    files = checkpoint.verified(undisturbed, checkpoint.latest(undisturbed, None))
    mean, raw = decode_weights(files["weights.safetensors"]), decode_optimizer(files["optimizer.pt"])["raw"]
    assert not torch.equal(mean["head.output.weight"], raw["head.output.weight"])
    evaluation = raycnn.evaluate(raycnn.load_config(whole, {"evaluate.split": "val"}))
    lines = [line for line in metrics(undisturbed) if "val_loss" in line]
    assert evaluation["metrics"]["loss"] == next(
        line["val_loss"] for line in lines if line["step"] == trained["best"]["step"]
    )
    assert all(line["penalty"] > 0 for line in metrics(undisturbed) if "lr" in line)
    loaded = raycnn.load(f"{tmp_path}/whole", "latest").network.state_dict()
    assert torch.equal(loaded["head.output.weight"], mean["head.output.weight"])


@pytest.mark.slow
def test_two_workers_find_a_learning_rate_and_leave_the_run_alone(digits, tmp_path):
    config = settings(digits, tmp_path, **{"train.workers": 2, "lr_find.steps": 60, "lr_find.low": 1e-5})
    found = raycnn.lr_find(config)
    assert 1e-4 < found["valley"] < 1
    assert 1e-4 < found["steep"] < 1
    assert len(found["curve"]) > 20
    left = {entry.key for entry in open_store(str(tmp_path / "run")).list("")}
    assert {key for key in left if not key.endswith("lease.json")} == {"lr-find/curve.json", "lr-find/curve.png"}
    assert raycnn.runs(str(tmp_path)) == []
    trained = raycnn.train(raycnn.load_config(config, {"train.epochs": 1, "optim.lr": found["valley"]}))
    assert trained["resumed_from"] is None
    again = raycnn.lr_find(config)  # of a run that has started
    assert again["curve"] == found["curve"]
