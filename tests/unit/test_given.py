"""Networks that a caller from Python gives: what they are called, how they are cut, what is refused."""

from __future__ import annotations

import copy
import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from torch import Tensor, nn

from raycnn.config import Config, identity_hash, load_config
from raycnn.config.given import Given
from raycnn.errors import CheckpointError, ConfigError
from raycnn.models.given import given_of, with_given
from raycnn.models.stages import find
from raycnn.models.weights import load_pretrained
from raycnn.storage import open_store
from raycnn.storage.lease import adopt
from raycnn.training import checkpoint
from raycnn.training.beforehand import refuse_unusable
from raycnn.training.run import check_identity, create_run, read_run
from raycnn.training.serialize import decode_weights, encode_weights
from raycnn.training.setup import Body, facts_of, network_of
from raycnn.training.start import first_commit

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")


class Net(nn.Module):
    """The class layer is registered first and runs last."""

    def __init__(self, num_outputs: int, width: int = 8) -> None:
        super().__init__()
        self.last = nn.Linear(width, num_outputs)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, width, 3, stride=2), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.last(self.pool(self.second(self.first(images_NCHW))).flatten(1))
        return logits_NK


def config(model: Any = Net, loss: Any = None, **changes: Any) -> Config:
    tree = {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y", "image_size": 32}}
    return with_given(load_config(tree | {"model": {"name": "reference/lenet"}}, changes), model, loss)


def network(settings: Config) -> Any:
    return network_of(facts_of(settings, CLASSES), settings.given)


def test_its_name_is_its_class_s_and_a_digest_of_its_state() -> None:
    name = given_of(Net).name
    assert name == given_of(Net).name == given_of(Net(2)).name
    assert name.startswith("python/Net@")
    wide = given_of(partial(Net, width=9)).name
    assert wide.startswith("python/Net@")
    assert wide != name
    made = given_of(lambda num_outputs: Net(num_outputs)).name
    assert made.rpartition("@")[2] == name.rpartition("@")[2]
    settings = config()
    assert settings.model.name == name
    assert load_config(settings, {"optim.lr": 0.5}).given == settings.given


def test_it_goes_to_others_with_the_config_and_is_no_part_of_what_is_stored() -> None:
    settings = config(Net(3), data={"source": "/y", "image_size": 32})
    there = cloudpickle.loads(cloudpickle.dumps(settings))
    assert there.given.call == settings.given.call
    weights = there.given.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in settings.given.model.state_dict().items())
    assert "given" not in str(settings.model_dump())
    assert identity_hash(settings) == identity_hash(config(Net(3)))


@pytest.mark.parametrize("model", [Net, Net(10)], ids=["class", "module with other outputs"])
def test_it_is_cut_and_has_the_classes(model: Any) -> None:
    settings = config(model)
    made = network(settings)
    assert made.classifier == "last"
    stages = find(made)
    assert [stage.name for stage in stages.stages] == ["first", "second"]
    assert stages.head.parameter_names == ("last.weight", "last.bias")
    images = torch.randn(2, 3, 32, 32)
    for depth in range(3):
        split = stages.split(depth)
        between = images if split.prefix is None else split.prefix(images)
        assert split.suffix(between).shape == (2, 3)
        torch.testing.assert_close(split.suffix(between), made.module(images))


def test_a_module_brings_its_weights_and_keeps_a_class_layer_that_fits(tmp_path: Path) -> None:
    for given, fits in ((Net(3), True), (Net(10), False)):
        own = copy.deepcopy(given.state_dict())
        settings = config(given, **{"run.storage": str(tmp_path), "run.name": f"{fits}"})
        given.first[0].weight.data.zero_()  # comes too late
        weights = begun(settings)
        assert weights["last.weight"].shape == (3, 8)
        same = {name for name, tensor in weights.items() if torch.equal(tensor, own[name])}
        assert same == {name for name in own if fits or not name.startswith("last")}


def begun(settings: Config) -> dict[str, Tensor]:
    """The weights of a run's first commit."""
    store = open_store(settings.run.storage).child(settings.run.name)
    facts = facts_of(settings, CLASSES)
    first_commit(settings, store, adopt(store, "me", lambda held: -1), facts, lambda line: None)
    commit = checkpoint.latest(store, None)
    assert commit is not None
    return decode_weights(checkpoint.verified(store, commit)["weights.safetensors"])


def test_a_class_s_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    found = [
        begun(config(**{"run.storage": str(tmp_path), "run.name": f"{n}", "train.seed": seed}))
        for n, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["last.weight"], found[2]["last.weight"])


def test_a_file_s_weights_and_a_new_class_layer() -> None:
    made, file = network(config()), Net(3)
    said = load_pretrained(made, "w.pth", sha256=None, read=lambda uri: encode_weights(file.state_dict()))
    assert "new class layer last" in said
    assert torch.equal(made.module.first[0].weight, file.first[0].weight)
    assert not torch.equal(made.module.last.weight, file.last.weight)


def test_weights_that_are_not_finite_are_refused() -> None:
    bad = Net(3)
    bad.first[0].bias.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"NaN or Inf: first\.0\.bias"):
        load_pretrained(network(config(bad)), "default", sha256=None, read=lambda uri: b"")


def test_another_head_takes_the_place_of_its_class_layer() -> None:
    made = network(config(**{"model.head.kind": "mlp", "model.head.width": 5}))
    assert made.module.last.hidden.out_features == 5
    assert find(made).num_stages == 2


def test_a_convolution_as_class_layer_keeps_its_shape() -> None:
    class Full(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 10, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    layer = network(config(Full())).module[1]
    assert (layer.out_channels, layer.kernel_size, layer.stride) == (3, (2, 2), (2, 2))


def test_mean_and_spread_are_settings() -> None:
    plain = facts_of(config(), CLASSES).preprocessing
    assert (plain.mean, plain.std, plain.image_size, plain.crop_fraction) == ((0.5,) * 3, (0.5,) * 3, 32, 1.0)
    own = {"data.mean": [0.1, 0.2, 0.3], "data.std": [1, 1, 2]}
    view = facts_of(config(**own), CLASSES).preprocessing
    assert (view.mean, view.std) == ((0.1, 0.2, 0.3), (1, 1, 2))
    assert identity_hash(config(**own)) != identity_hash(config())


def test_a_network_that_cannot_be_traced_trains_at_all(caplog: pytest.LogCaptureFixture) -> None:
    class Choosing(Net):
        def forward(self, images_NCHW: Tensor) -> Tensor:
            return super().forward(images_NCHW if images_NCHW.sum() > -1e9 else -images_NCHW)

    with caplog.at_level(logging.WARNING):
        body = Body(config(Choosing), facts_of(config(Choosing), CLASSES), CPU)
    assert "cannot be cut into stages, it trains at depth all only" in caplog.text
    with pytest.raises(ConfigError, match="use all"):
        body.stages.split(0)


def test_what_is_kept_of_a_frozen_part_is_used_in_the_same_call_alone() -> None:
    """The code may be another in the next one, and nothing tells."""
    one, same = config(), config()
    found = [Body(each, facts_of(each, CLASSES), CPU).identity(0) for each in (one, one, same)]
    assert found[0] == found[1] != found[2]


class Tuple(Net):
    def forward(self, images_NCHW: Tensor) -> Any:
        return super().forward(images_NCHW), images_NCHW


class Wrong(Net):
    def forward(self, images_NCHW: Tensor) -> Tensor:
        return super().forward(images_NCHW)[:, :2]


class Headless(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.mean((2, 3))[:, : self.num_outputs]


class Fixed(nn.Sequential):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 28 * 28, num_outputs))


class Stateful(Net):
    def get_extra_state(self) -> Any:
        return {"a": 1}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Tuple, "gives a tuple"),
        (Wrong, r"gives \[2, 2\] for 2 images, and 2 x 3 logits are needed"),
        (Headless, "has no class layer"),
        (Fixed, r"fails on images of 32 pixels.*see data.image_size"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_run_is_written_down(model: Any, expected: str) -> None:
    settings = config(model)
    with pytest.raises(ConfigError, match=expected):
        refuse_unusable(settings, facts_of(settings, CLASSES), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Stateful, "holds other than tensors"),
        (lambda num_outputs: 7, r"lambda\(2\) is a int"),
        (lambda: Net(2), r"lambda\(2\) fails: TypeError"),
        (7, r"int\(2\) fails: TypeError"),
        (partial(Net, width=threading.Lock()), "Net cannot be pickled"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(model: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config(model)


def test_a_size_is_needed() -> None:
    with pytest.raises(ConfigError, match="has no image size of its own") as caught:
        facts_of(config(**{"data.image_size": None}), CLASSES)
    assert caught.value.where == "data.image_size"


def test_a_module_that_is_given_has_weights() -> None:
    config(Net, **{"model.weights": "none"})
    with pytest.raises(ConfigError, match="brings its weights"):
        config(Net(2), **{"model.weights": "none"})


def test_another_module_or_none_is_refused(tmp_path: Path) -> None:
    settings = config(**{"run.storage": str(tmp_path)})
    store = open_store(str(tmp_path)).child("r")
    create_run(settings, store, "index", CLASSES)
    facts = read_run(store)
    assert facts is not None
    check_identity(settings, facts, "here")
    with pytest.raises(CheckpointError, match=r"model\.name: python/Net@\w{12} -> python/Net@\w{12}"):
        check_identity(config(partial(Net, width=9)), facts, "here")
    name = settings.model.name
    with pytest.raises(ConfigError, match=r"give it again, from Python: raycnn\.train\(config, model=\.\.\.\)"):
        Given().require(name)
    with pytest.raises(CheckpointError, match=f"the run has {name}, and python/"):
        given_of(partial(Net, width=9)).require(name)
    settings.given.require("reference/lenet")
