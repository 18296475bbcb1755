"""A network and a loss that are given from Python: trained, resumed, searched, and the page that shows it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from torch import nn
from torch.nn import functional

import raycnn
from raycnn.demo.inputs import write
from raycnn.errors import CheckpointError, ConfigError
from raycnn.storage import open_store
from tests.ray.test_train import settings as base
from tests.support.runs import final_hashes, kill_one_worker

ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    def __init__(self, num_outputs: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, width, 3, stride=2), nn.ReLU())
        self.pool, self.drop = nn.AdaptiveAvgPool2d(2), nn.Dropout(0.1)
        self.last = nn.Linear(4 * width, num_outputs)

    def forward(self, images_NCHW):
        return self.last(self.drop(self.pool(self.second(self.first(images_NCHW))).flatten(1)))


def smooth(logits_NK, labels_N):
    return functional.cross_entropy(logits_NK, labels_N, label_smoothing=0.05, reduction="none")


@pytest.fixture(autouse=True, scope="module")
def by_value():
    """As if this were the script that runs: the nodes need not know its file."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def settings(digits, tmp_path, name="run", **changes):
    changes = {"data.image_size": 32, "model.batchnorm": "local", "model.weights": "default", **changes}
    return base(digits, tmp_path, name, **changes)


@pytest.mark.usefixtures("local_ray")
def test_train_evaluate_load_and_who_forgets_the_network(digits, tmp_path):
    model, loss = Net, smooth
    config = settings(
        digits, tmp_path, **{"train.epochs": 8, "train.workers": 2, "augment.mixup": 0.1, "optim.lr": 0.01}
    )
    trained = raycnn.train(config, model=model, loss=loss)
    assert trained["best"]["metrics"]["accuracy"] > 0.7
    with pytest.raises(CheckpointError, match=r"model\.name: python/Net@\w+ -> python/Net@\w+"):
        raycnn.train(config, model=partial(model, width=8), loss=loss)
    with pytest.raises(CheckpointError, match=r"loss\.name: python/smooth -> auto"):
        raycnn.train(config, model=model)
    with pytest.raises(ConfigError, match=r"raycnn\.train\(config, model=\.\.\.\)"):
        raycnn.evaluate(config)
    found = raycnn.evaluate(config, model=model)
    assert found["metrics"]["accuracy"] > 0.7
    with pytest.raises(ConfigError, match="give it again"):
        raycnn.load(f"{tmp_path}/run")
    network = raycnn.load(f"{tmp_path}/run", model=model)
    assert isinstance(network.network.last, nn.Linear)
    image = next(digits.glob("digit-3/*.png"))
    assert sum(network.predict(image).values()) == pytest.approx(1)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_worker_changes_no_bit(world, digits, tmp_path):
    model, loss = Net, smooth
    whole = settings(digits, tmp_path, "whole", **{"train.workers": world})
    raycnn.train(whole, model=model, loss=loss)
    store = open_store(str(tmp_path / "killed"))
    victim = threading.Thread(target=kill_one_worker, args=(store,))
    victim.start()
    raycnn.train(raycnn.load_config(whole, {"run.name": "killed"}), model=model, loss=loss)
    victim.join()
    assert final_hashes(store) == final_hashes(open_store(str(tmp_path / "whole")))
    assert max(int(name[-3:]) for name in store.folders("checkpoints")) > 2  # the group was started twice


@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow
def test_a_search_a_plan_and_a_range_test_with_it(digits, tmp_path):
    torch.manual_seed(0)
    model, loss = Net(4), smooth  # of other classes
    space = {"model.unfreeze": {"grid": [0, 1, "all"]}}
    changes = {"search.space": space, "search.confirm": [0, 0], "train.epochs": 2, "augment.crop_scale": None}
    config = settings(digits, tmp_path, "search", **changes, **{"cache.folder": str(tmp_path)})
    found = raycnn.search(config, model=model, loss=loss)
    assert [trial["status"] for trial in found["trials"]] == ["finished"] * 3
    assert found["test"]["metrics"]["accuracy"] > 0
    root = open_store(str(tmp_path))
    for number, depth in enumerate((0, 1, "all")):
        alone = raycnn.load_config(config, {"run.name": f"alone-{depth}", "model.unfreeze": depth})
        raycnn.train(alone, model=model, loss=loss)
        packed, own = (
            final_hashes(root.child(each)) for each in (f"search/search/trials/{number:04d}", f"alone-{depth}")
        )
        assert packed == own
    predicted = raycnn.predict(config, model=model)
    assert predicted["rows"] == 60
    planned = raycnn.plan(config, model=model, loss=loss)
    assert [stage["name"] for stage in planned["stages"]] == ["first", "second"]
    ranged = raycnn.lr_find(raycnn.load_config(config, {"lr_find.steps": 30}), model=model, loss=loss)
    assert len(ranged["curve"]) > 20


@pytest.mark.slow
def test_the_page_s_script_runs_as_it_stands(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), flags=re.DOTALL)
    write("patches", tmp_path / "demo-output")
    (tmp_path / "small.py").write_text(script)
    done = subprocess.run([sys.executable, "small.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    accuracy, predicted = done.stdout.splitlines()[-2:]
    assert float(accuracy) > 0.2  # of ten classes
    assert sum(ast.literal_eval(predicted).values()) == pytest.approx(1)
