from __future__ import annotations

import sys
from typing import ClassVar

import pytest
import torch
from torch import nn

from raycnn.data.transforms import Preprocessing
from raycnn.errors import ConfigError
from raycnn.models.zoo import build, preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(5)
    one = build("torchvision/mobilenet_v3_small", 3, seed=1).module.state_dict()
    torch.manual_seed(6)
    same = build("torchvision/mobilenet_v3_small", 3, seed=1).module.state_dict()
    other = build("torchvision/mobilenet_v3_small", 3, seed=2).module.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["features.0.0.weight"], other["features.0.0.weight"])


def test_the_random_state_stays_as_it_was() -> None:
    before = torch.get_rng_state()
    build("reference/lenet", 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("torchvision/resnet18", "fc"),
        ("torchvision/squeezenet1_1", "classifier.1"),
        ("torchvision/mobilenet_v3_small", "classifier.3"),
        ("timm/test_resnet", "fc"),
        ("timm/convnext_atto", "head.fc"),
        ("timm/tf_efficientnet_lite0", "classifier"),
        ("reference/lenet", "head.output"),
    ],
)
def test_the_class_layer_is_found_and_has_the_classes(name: str, classifier: str) -> None:
    network = build(name, 7, seed=0)
    assert network.classifier == classifier
    layer = network.module.get_submodule(classifier)
    assert layer.weight.shape[0] == 7
    assert network.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("name", ["torchvision/googlenet", "torchvision/inception_v3"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    module = build(name, 3, seed=0).module
    assert not [path for path, _ in module.named_modules() if "aux" in path.lower()]
    assert module.train()(torch.zeros(2, 3, 96, 96)).shape == (2, 3)  # no tuple of outputs
    assert module.transform_input


def test_no_dropout_works_in_place() -> None:
    layers = list(build("torchvision/efficientnet_b0", 3, seed=0).module.modules())
    assert [layer.inplace for layer in layers if isinstance(layer, nn.Dropout)] == [False]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision/resnet50", Preprocessing(224, 224 / 232, "bilinear", **IMAGENET)),
        ("torchvision/efficientnet_b1", Preprocessing(240, 240 / 255, "bilinear", **IMAGENET)),
        ("torchvision/inception_v3", Preprocessing(299, 299 / 342, "bilinear", **IMAGENET)),
        ("timm/tf_efficientnet_lite0", Preprocessing(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        ("timm/resnet50.a1_in1k", Preprocessing(224, 0.95, "bicubic", **IMAGENET)),
        ("reference/lenet", Preprocessing(32, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ],
)
def test_preprocessing_is_that_of_the_pretrained_weights(name: str, expected: Preprocessing) -> None:
    assert preprocessing(name) == expected
    assert Preprocessing.from_json(expected.as_json()) == expected


def test_another_image_size_keeps_the_crop_fraction() -> None:
    network = build("torchvision/resnet18", 2, seed=0, image_size=160)
    assert network.preprocessing == Preprocessing(160, 0.875, "bilinear", **IMAGENET)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvision/resnet5O", "torchvision/resnet50"),
        ("timm/tf_efficientnet_lite9", "timm/tf_efficientnet_lite"),
        ("timm/resnet50.a9_in1k", "timm/resnet50.a"),
        ("reference/lennet", "reference/lenet"),
        ("torchvision/zzzzzzzz", "documentation"),
        ("resnet50", "torchvision/NAME"),
        ("hub/resnet50", "torchvision/NAME"),
        ("timm/deit_tiny_distilled_patch16_224", "another network"),
    ],
)
def test_an_unknown_name_is_refused_with_what_to_do(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        build(name, 2, seed=0)
    assert caught.value.where == "model.name"


def test_without_timm_only_its_own_networks_fail_and_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    build("torchvision/squeezenet1_1", 2, seed=0)
    with pytest.raises(ConfigError, match=r"pip install 'raycnn\[timm\]'"):
        build("timm/tf_efficientnet_lite0", 2, seed=0)


def test_an_encoder_without_a_class_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder(nn.Conv2d):
        pretrained_cfg: ClassVar = {"classifier": "fc"}

    monkeypatch.setattr("timm.models.create_model", lambda *_, **__: Encoder(3, 4, 1))
    with pytest.raises(ConfigError, match="one class layer"):
        build("timm/test_resnet", 2, seed=0)
