"""Everything that varies images and classes at once: a kill changes no bit, and evaluation may look several times."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import raycnn
from raycnn.config import Config
from raycnn.storage import open_store
from tests.support.runs import final_hashes, kill_one_worker

pytestmark = pytest.mark.usefixtures("local_ray")

CLASSES = [f"digit-{number}" for number in (0, 1, 2, 7, 8)]


@pytest.fixture(scope="module")
def uneven(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of each of three digits, 8 of two others."""
    root = tmp_path_factory.mktemp("uneven")
    for name, number in zip(CLASSES, (40, 40, 40, 8, 8), strict=True):
        (root / "images" / name).mkdir(parents=True)
        for path in sorted((digits / name).iterdir())[:number]:
            shutil.copy(path, root / "images" / name)
    return root


def config(root: Path, name: str, **changes: Any) -> Config:
    tree = {
        "run": {"name": name, "storage": str(root / "runs")},
        "data": {"source": str(root / "images"), "val_fraction": 0.25, "test_fraction": 0.25, "stratify": True},
        "model": {"name": "reference/lenet", "weights": "none"},
        "augment": {
            "crop_scale": [0.8, 1.0], "hflip": 0.0, "rotate": 10, "policy": "trivialaugment",
            "erase": 0.3, "mixup": 0.2, "cutmix": 1.0, "views": 2,
        },
        "optim": {"name": "adamw", "lr": 0.005},
        "train": {"epochs": 3, "global_batch": 16, "chunk": 8, "workers": 2, "checkpoint_every": 7, "log_every": 3},
    }  # fmt: skip
    return raycnn.load_config(tree, {"data.resample": "balanced", **changes})


@pytest.fixture(scope="module")
def whole(local_ray: None, uneven: Path) -> Config:
    made = config(uneven, "whole")
    assert raycnn.train(made)["status"] == "finished"
    return made


@pytest.mark.slow
def test_a_kill_changes_no_bit(whole: Config, uneven: Path) -> None:
    store = open_store(str(uneven / "runs" / "killed"))
    victim = threading.Thread(target=kill_one_worker, args=(store,))
    victim.start()
    raycnn.train(config(uneven, "killed"))
    victim.join()
    assert final_hashes(store) == final_hashes(open_store(str(uneven / "runs" / "whole")))
    assert max(int(name[-3:]) for name in store.folders("checkpoints")) > 2  # the group was started twice


@pytest.mark.slow
def test_evaluation_and_prediction_with_several_views_and_other_shares(whole: Config, uneven: Path) -> None:
    plain = raycnn.evaluate(whole)
    changes = {"evaluate.tta": "crops", "evaluate.prior": "rows", "predict.tta": "crops", "predict.prior": "rows"}
    found = [
        raycnn.evaluate(raycnn.load_config(whole, {**changes, "train.workers": workers, "train.global_batch": 16}))
        for workers in (1, 2)
    ]
    assert json.dumps(found[0]) == json.dumps(found[1])
    assert found[0]["metrics"]["loss"] != plain["metrics"]["loss"]
    table = pq.read_table(raycnn.predict(raycnn.load_config(whole, changes))["output"])
    probabilities = np.array(table["probabilities"].to_pylist())
    labels = [CLASSES.index(key.split("/")[0]) for key in table["key"].to_pylist()]
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(found[0]["metrics"]["loss_calibrated"], rel=1e-4)
