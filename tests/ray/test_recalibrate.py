"""model.recalibrate: BatchNorm's statistics are those of the images that it names, before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import raycnn
from raycnn.data.decode import Limits, decode
from raycnn.data.transforms import eval_view
from raycnn.errors import ConfigError, DataError
from raycnn.models.batchnorm import batch_statistics, set_statistics, with_statistics
from raycnn.models.zoo import build
from raycnn.storage import open_store
from raycnn.training import checkpoint
from raycnn.training.device import Normalize
from raycnn.training.serialize import decode_weights

pytestmark = pytest.mark.usefixtures("local_ray")

NAME = "timm/test_efficientnet"


def started(digits: Path, storage: Path, name: str, **changes) -> dict[str, Tensor]:
    """Weights after the first step, all but the head frozen."""
    config = {
        "run": {"name": name, "storage": str(storage)},
        "data": {"source": str(digits), "image_size": 32, "stratify": True},
        "model": {"name": NAME, "weights": "none", "unfreeze": 0},
        "train": {"epochs": 0.05, "global_batch": 16, "chunk": 16},
    }
    raycnn.train(raycnn.load_config(config, changes))
    store = open_store(f"{storage}/{name}")
    commit = checkpoint.latest(store, None)
    return decode_weights(checkpoint.verified(store, commit)["weights.safetensors"])


def statistics(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if "running_" in name}


@pytest.mark.slow
def test_statistics_are_those_of_the_training_rows_for_any_number_of_workers(digits: Path, tmp_path: Path) -> None:
    one = started(digits, tmp_path, "one", **{"model.recalibrate": "train"})
    two = started(digits, tmp_path, "two", **{"model.recalibrate": "train", "train.workers": 2})
    assert statistics(one)
    assert all(torch.equal(tensor, statistics(two)[name]) for name, tensor in statistics(one).items())
    untouched = build(NAME, 10, seed=0, image_size=32).module.state_dict()
    assert not any(torch.equal(tensor, untouched[name]) for name, tensor in statistics(one).items())


def test_statistics_are_those_of_a_folder_of_other_images(digits: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    generator = np.random.default_rng(0)
    for number in range(24):  # a chunk and a half
        Image.fromarray(generator.integers(100, 256, (32, 32, 3), np.uint8)).save(target / f"{number:02}.png")
    found = started(digits, tmp_path, "run", **{"model.recalibrate": str(target)})
    network = build(NAME, 10, seed=0, image_size=32)
    state = network.module.state_dict()
    network.module.load_state_dict({name: found[name] for name in state})
    files = sorted(target.iterdir())
    images = np.stack([eval_view(decode(f.read_bytes(), Limits(10**6, 10**6)), network.preprocessing) for f in files])
    inputs = Normalize(network.preprocessing)(torch.from_numpy(images))
    set_statistics(network.module, batch_statistics(network.module, inputs), 1)
    first = with_statistics(network.module)[0]  # what comes to it does not depend on any statistics
    path = next(name for name, layer in network.module.named_modules() if layer is first)
    torch.testing.assert_close(found[f"{path}.running_mean"], first.running_mean, rtol=1e-4, atol=1e-5)
    # chunks have variances of their own, about means that differ a little
    torch.testing.assert_close(found[f"{path}.running_var"], first.running_var, rtol=0.05, atol=1e-4)


def test_what_cannot_be_recalibrated_is_one_line(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reference/lenet has no BatchNorm.*model\.recalibrate"):
        started(digits, tmp_path, "lenet", **{"model.name": "reference/lenet", "model.recalibrate": "train"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images.*model\.recalibrate"):
        started(digits, tmp_path, "empty-run", **{"model.recalibrate": str(tmp_path / "empty")})
