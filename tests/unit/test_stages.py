from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raycnn.data.transforms import Preprocessing
from raycnn.errors import ConfigError
from raycnn.models.stages import Split, Stages, find
from raycnn.models.zoo import Network, build

NAMES: dict[str, tuple[str, ...]] = {
    "reference/lenet": ("c1", "c3", "c5"),
    "torchvision/resnet18": ("conv1..bn1", "layer1", "layer2", "layer3", "layer4"),
    "torchvision/alexnet": ("features.0", "features.3", "features.6..10"),
    "torchvision/squeezenet1_1": ("features.0", "features.3..4", "features.6..7", "features.9..12"),
    "torchvision/mobilenet_v3_small": ("features.0", "features.1", "features.2..3", "features.4..8", "features.9..12"),
    "torchvision/efficientnet_b0": ("features.0..1", "features.2", "features.3", "features.4..5", "features.6..8"),
    "torchvision/googlenet": (
        "conv1",
        "conv2..conv3",
        "inception3a..inception3b",
        "inception4a..inception4e",
        "inception5a..inception5b",
    ),
    "timm/tf_efficientnet_lite0": ("conv_stem..blocks.0", "blocks.1", "blocks.2", "blocks.3..4", "blocks.5..bn2"),
    "timm/convnext_atto": ("stem..stages.0", "stages.1", "stages.2", "stages.3"),
    "timm/ghostnet_050": (
        "conv_stem..blocks.0",
        "blocks.1..2",
        "blocks.3..4",
        "blocks.5..6",
        "blocks.7..9",
        "conv_head",
    ),  # the root itself calls dropout with its own training flag
}


@pytest.fixture(scope="module", params=NAMES)
def found(request: pytest.FixtureRequest) -> tuple[Network, Stages]:
    network = build(request.param, 5, seed=0)
    return network, find(network)


def test_stages_end_where_the_resolution_does(found: tuple[Network, Stages]) -> None:
    network, stages = found
    assert stages.cuttable
    assert tuple(stage.name for stage in stages.stages) == NAMES[network.name]
    assert stages.num_stages == len(NAMES[network.name])
    assert stages.head.name == network.classifier.partition(".")[0]


def test_every_parameter_is_in_one_stage(found: tuple[Network, Stages]) -> None:
    network, stages = found
    covered = [name for stage in (*stages.stages, stages.head) for name in stage.parameter_names]
    assert sorted(covered) == sorted(name for name, _ in network.module.named_parameters())
    assert all(stage.parameters > 0 for stage in stages.stages)
    assert stages.head.parameters + sum(stage.parameters for stage in stages.stages) == sum(
        parameter.numel() for parameter in network.module.parameters()
    )


@pytest.mark.parametrize("training", [False, True])
def test_prefix_then_suffix_is_the_network(found: tuple[Network, Stages], training: bool) -> None:
    network, stages = found
    size = 64 if network.name == "torchvision/alexnet" else 32
    images = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
    whole = seeded(network.module.train(training), images)
    for depth in (*range(stages.num_stages + 1), "all", *stages.modules[::5]):
        split = stages.split(depth)
        for part in filter(None, (split.prefix, split.suffix)):
            part.train(training)
        assert torch.equal(seeded(lambda images, split=split: in_two(split, images), images), whole), depth


def test_the_parts_share_the_networks_tensors_under_its_names(found: tuple[Network, Stages]) -> None:
    network, stages = found
    whole = network.module.state_dict(keep_vars=True)
    for depth in range(stages.num_stages):
        split = stages.split(depth)
        assert split.prefix is not None
        prefix, suffix = split.prefix.state_dict(keep_vars=True), split.suffix.state_dict(keep_vars=True)
        assert prefix.keys() | suffix.keys() == whole.keys()
        assert not prefix.keys() & suffix.keys()
        assert all(tensor is whole[name] for name, tensor in (prefix | suffix).items())
        trained = stages.stages[stages.num_stages - depth :]
        names = {name for stage in (*trained, stages.head) for name in stage.parameter_names}
        assert {name for name, _ in split.suffix.named_parameters()} == names


def test_from_a_module_on_all_of_it_and_what_comes_later_trains(found: tuple[Network, Stages]) -> None:
    network, stages = found
    names = [name for name, _ in network.module.named_parameters()]
    assert {stage.name.partition("..")[0] for stage in stages.stages} <= set(stages.modules)
    assert len(stages.modules) >= stages.num_stages
    before: set[str] = set(names)
    for module in stages.modules:
        trained = {name for name, _ in stages.suffix(module).named_parameters()}
        assert {name for name in names if name.startswith(module + ".")} <= trained <= before, module
        before = trained


def test_finer_depths_have_one_name_and_an_order() -> None:
    stages = find(build("timm/tf_efficientnet_lite0", 5, seed=0))
    suffix = {name.partition(".")[0] for name, _ in stages.suffix("blocks.6").named_parameters()}
    assert suffix == {"blocks", "conv_head", "bn2", "classifier"}
    trained = [name for name, _ in stages.suffix("blocks.6").named_parameters() if name.startswith("blocks.")]
    assert {name.split(".")[1] for name in trained} == {"6"}
    assert [stages.canonical(name) for name in ("blocks.6", "blocks.6.0", "blocks.6.0.conv_pw")] == ["blocks.6"] * 3
    assert stages.canonical("blocks.5") == 1  # where a stage starts
    assert stages.canonical("conv_stem") == 5
    assert stages.deepest_first([0, "blocks.6", "all", 1, "blocks.4"]) == ["all", "blocks.4", 1, "blocks.6", 0]


@pytest.mark.parametrize(
    ("module", "near"),
    [
        ("blocks.7", "blocks.6"),
        ("blocks.5.1.conv_dw", "blocks.5.1"),  # beside it the skip is alive
        ("classifier", "0 to 5"),
        ("some", "bn2"),
    ],
)
def test_a_module_without_a_cut_before_it_is_refused(module: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be cut before {module}") as caught:
        find(build("timm/tf_efficientnet_lite0", 5, seed=0)).split(module)
    assert caught.value.where == f"model.unfreeze {module}"
    assert near in caught.value.fix


@pytest.fixture(scope="module", params=["reference/lenet", "timm/test_efficientnet"])
def small(request: pytest.FixtureRequest) -> tuple[Network, Stages]:
    network = build(request.param, 5, seed=0)
    network.module.eval()
    return network, find(network)


def test_what_lies_between_two_suffixes_joins_them(small: tuple[Network, Stages]) -> None:
    network, stages = small
    total, inputs = stages.num_stages, torch.randn(2, 3, 32, 32)
    whole = seeded(network.module, inputs)
    for deep in range(total, 0, -1):
        part = stages.between(deep, deep - 1)
        assert part is not None
        inputs = seeded(part.eval(), inputs)
        assert torch.equal(seeded(stages.suffix(deep - 1).eval(), inputs), whole), deep
    assert all(stages.between(depth, depth) is None for depth in (*range(total + 1), "all"))
    assert stages.between("all", total) is stages.between(total, "all") is None


def test_a_copy_owns_its_suffix_and_shares_what_lies_before(small: tuple[Network, Stages]) -> None:
    network, stages = small
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    for depth in (0, 1, "all", stages.modules[-1]):
        copied, own = stages.copy(depth)
        mine = own.suffix(depth).state_dict(keep_vars=True)
        state = copied.module.state_dict(keep_vars=True)
        for name, tensor in network.module.state_dict(keep_vars=True).items():
            assert torch.equal(state[name], tensor)
            assert (state[name] is tensor) is (name not in mine), name
        assert all(tensor is state[name] for name, tensor in mine.items())
        assert own.stages == stages.stages
        with torch.no_grad():
            for tensor in mine.values():
                tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_a_copy_of_a_copy_computes_what_the_first_does(small: tuple[Network, Stages]) -> None:
    network, stages = small
    images = torch.randn(2, 3, 32, 32)
    copied, second = stages.copy(1)[1].copy(0)
    split = second.split(0)
    for part in filter(None, (split.prefix, split.suffix)):
        part.eval()
    whole = seeded(network.module, images)
    assert torch.equal(seeded(lambda images: in_two(split, images), images), whole)
    assert torch.equal(seeded(copied.module.eval(), images), whole)


def test_depths_as_numbers() -> None:
    stages = find(build("reference/lenet", 5, seed=0))
    assert [stages.canonical(depth) for depth in (0, 1, 2, 3, "all")] == [0, 1, 2, 3, 3]
    for depth in (-1, 4):
        with pytest.raises(ConfigError, match="has 3 stages") as caught:
            stages.canonical(depth)
        assert "0 to 3" in caught.value.fix


def test_finding_leaves_the_network_as_it_was() -> None:
    network = build("torchvision/resnet18", 5, seed=0)
    network.module.layer1.eval()
    flags = {name: module.training for name, module in network.module.named_modules()}
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    find(network)
    assert {name: module.training for name, module in network.module.named_modules()} == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_the_stages_do_not_depend_on_the_image_size() -> None:
    small, native = (find(build("torchvision/resnet18", 5, seed=0, image_size=size)) for size in (8, None))
    assert small.stages == native.stages


# dropout as a layer before the head, by the root itself, and inside of the head
@pytest.mark.parametrize("name", ["torchvision/googlenet", "timm/ghostnet_050", "torchvision/mobilenet_v3_small"])
def test_the_head_takes_pooled_features_and_keeps_its_dropout(name: str) -> None:
    split = find(build(name, 5, seed=0)).split(0)
    assert split.prefix is not None
    features = split.prefix.eval()(torch.randn(2, 3, 64, 64))
    assert features.numel() == 2 * features.shape[1]
    features = torch.randn_like(features)
    split.suffix.train()
    assert not torch.equal(split.suffix(features), split.suffix(features))


def test_cuts_lie_between_the_blocks_where_channels_are_few() -> None:
    split = find(build("torchvision/efficientnet_b0", 5, seed=0)).split(1)
    assert split.prefix is not None
    assert split.prefix.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 112, 4, 4)  # 672 inside of the next block


@pytest.mark.parametrize("depth", [6, -1])
def test_a_depth_that_does_not_exist_names_the_number_of_stages(depth: int) -> None:
    with pytest.raises(ConfigError, match="has 5 stages") as caught:
        find(build("torchvision/resnet18", 5, seed=0)).split(depth)
    assert "model.unfreeze" in caught.value.where


class Judging(nn.Module):
    """A layer that looks at its values."""

    def forward(self, features: Tensor) -> Tensor:
        return features if features.sum() > 0 else -features


class Own(nn.Module):
    """A network of two convolutions and a head, with something odd between them."""

    def __init__(self, odd: Any = lambda self, images: images) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)
        self.odd, self.judging = odd, Judging()

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.odd(self, self.first(images)))
        return self.fc(self.pool(self.inner(features)).flatten(1))


def own(module: nn.Module) -> Network:
    # the name only decides the native size
    return Network("reference/lenet", module, "fc", Preprocessing(32, 1.0, "bilinear", (0.5,), (0.5,)))


def test_no_cut_lies_before_a_write_in_place() -> None:
    class Writing(Own):
        def forward(self, images: Tensor) -> Tensor:
            thinned = self.first(images)[:, :, ::2, ::2].relu_()  # a view: it writes to what the first layer gave
            return self.fc(self.pool(self.second(self.inner(thinned))).flatten(1))

    stages = find(own(Writing()))
    assert stages.num_stages == 2
    for depth in range(2):
        split = stages.split(depth)
        assert split.prefix is not None
        between = split.prefix(torch.randn(1, 3, 32, 32))
        before = between.clone()
        split.suffix(between)
        assert torch.equal(between, before)


def test_layers_used_on_both_sides_are_not_separated() -> None:
    class Shared(Own):
        def forward(self, images: Tensor) -> Tensor:
            features = self.inner(self.first(images))
            return self.fc(self.pool(self.inner(self.second(features))).flatten(1))

    stages = find(own(Shared()))
    assert [stage.name for stage in stages.stages] == ["first", "second..inner"]


def test_a_dropout_used_on_both_sides_is_not_separated() -> None:
    class Shared(Own):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, images: Tensor) -> Tensor:
            features = self.drop(self.second(self.drop(self.first(images))))
            return self.fc(self.pool(self.inner(features)).flatten(1))

    split = find(own(Shared())).split(1)
    assert split.prefix is not None
    dropouts = [
        layer for part in (split.prefix, split.suffix) for layer in part.modules() if isinstance(layer, nn.Dropout)
    ]
    assert len(dropouts) == 1  # it cannot be in eval mode in one part and in train mode in the other


def test_a_parameter_used_on_both_sides_is_not_separated() -> None:
    class Tied(Own):
        def forward(self, images: Tensor) -> Tensor:
            features = functional.conv2d(self.first(images), self.inner[0].weight)
            features = functional.conv2d(self.second(features), self.inner[0].weight, self.inner[0].bias)
            return self.fc(self.pool(features).flatten(1))

    assert [stage.name for stage in find(own(Tied())).stages] == ["first", "second..inner"]


class Noisy(nn.Module):
    """A container that asks for its own training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        return features + torch.rand_like(features) if self.training else self.conv(features)


class Counted(nn.Module):
    """A container whose forward needs a size as a number and so cannot be traced through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        for _ in range(features.shape[1] // 2):
            features = self.conv(features)
        return features


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("odd", [Noisy, Counted])
def test_a_container_that_cannot_be_traced_is_one_node(odd: type[nn.Module], training: bool) -> None:
    module = Own()
    module.inner = nn.Sequential(nn.ReLU(), odd())
    stages = find(own(module))
    assert stages.num_stages == 2
    images = torch.randn(2, 3, 32, 32)
    whole = seeded(module.train(training), images)
    for depth in range(3):
        split = stages.split(depth)
        for part in filter(None, (split.prefix, split.suffix)):
            part.train(training)
        assert torch.equal(seeded(lambda images, split=split: in_two(split, images), images), whole)


UNCUTTABLE = {
    "control flow": lambda self, features: features if features.sum() > 0 else -features,
    "training": lambda self, features: -features if self.training else features,
    "values": lambda self, features: self.judging(features),
    "constant": lambda self, features: features + torch.arange(1.0),
}


@pytest.mark.parametrize("odd", UNCUTTABLE.values(), ids=UNCUTTABLE.keys())
def test_a_network_that_cannot_be_cut_is_named_and_trains_at_all(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    module = Own(odd)
    with caplog.at_level(logging.WARNING):
        stages = find(own(module))
    assert "reference/lenet cannot be cut" in caplog.text
    assert not stages.cuttable
    assert stages.head.parameter_names == ("fc.weight", "fc.bias")
    assert stages.num_stages == 1
    assert stages.split("all") == Split(None, module)
    assert stages.canonical("all") == 1
    copied, own_stages = stages.copy("all")
    assert own_stages.suffix("all") is copied.module
    assert all(a is not b for a, b in zip(copied.module.parameters(), module.parameters(), strict=True))
    with pytest.raises(ConfigError, match="cannot be cut"):
        stages.split(0)


def in_two(split: Split, images: Tensor) -> Tensor:
    between = images if split.prefix is None else split.prefix(images)
    logits: Tensor = split.suffix(between)
    return logits


@torch.no_grad()
def seeded(call: Any, images: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        logits: Tensor = call(images)
        return logits
