from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from raycnn.errors import ConfigError
from raycnn.models.batchnorm import batch_statistics, set_mode, set_statistics, synchronise, with_statistics
from raycnn.models.stages import Split, find
from raycnn.models.zoo import build

NETWORKS = ["torchvision/resnet18", "timm/tf_efficientnet_lite0"]  # BatchNorm2d, and timm's with an activation


def train_step(split: Split) -> None:
    optimizer = torch.optim.SGD([p for p in split.suffix.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    images = torch.randn(2, 3, 64, 64)
    images = images if split.prefix is None else split.prefix(images)
    split.suffix(images).square().sum().backward()
    optimizer.step()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("policy", ["frozen", "local"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_prefix_stands_still_and_the_suffix_follows_the_policy(
    name: str, policy: Literal["frozen", "local"]
) -> None:
    network = build(name, 5, seed=0)
    split = find(network).split(1)
    assert split.prefix is not None
    set_mode(split, policy)
    prefix, suffix = state(split.prefix), state(split.suffix)
    train_step(split)
    assert not moved(prefix, state(split.prefix))
    assert all(parameter.grad is None for parameter in split.prefix.parameters())
    changed = moved(suffix, state(split.suffix))
    statistics = {name for name, _ in split.suffix.named_buffers()}
    assert statistics
    assert changed & statistics == (statistics if policy == "local" else set())
    assert {name for name, _ in split.suffix.named_parameters()} <= changed


def test_a_deeper_split_trains_what_a_shallower_one_froze() -> None:
    stages = find(build("torchvision/resnet18", 5, seed=0))
    set_mode(stages.split(0), "frozen")
    deeper = stages.split("all")
    set_mode(deeper, "frozen")
    assert all(parameter.requires_grad for parameter in deeper.suffix.parameters())


def test_frozen_keeps_dropout_training() -> None:
    split = find(build("torchvision/mobilenet_v3_small", 5, seed=0)).split(0)
    set_mode(split, "frozen")
    assert all(layer.training for layer in split.suffix.modules() if isinstance(layer, nn.Dropout))


def test_sync_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="GPU"):
        set_mode(find(build("torchvision/resnet18", 5, seed=0)).split(1), "sync")


@pytest.mark.parametrize("name", NETWORKS)
def test_synchronised_layers_share_the_networks_tensors(name: str) -> None:
    network = build(name, 5, seed=0)
    split = find(network).split(1)
    suffix = split.suffix
    assert split.prefix is not None
    features = split.prefix.eval()(torch.randn(2, 3, 64, 64))
    logits = suffix.eval()(features)
    before = suffix.state_dict(keep_vars=True)
    synchronise(suffix)
    assert not any(type(layer).__name__.startswith("BatchNorm") for layer in suffix.modules())
    after = suffix.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    torch.testing.assert_close(suffix.eval()(features), logits)  # in eval mode they need no process group


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_of_some_batches_are_those_of_torch_s_own_cumulative_average(name: str) -> None:
    batches = [torch.randn(8, 3, 64, 64) * scale for scale in (0.5, 1, 2)]
    ours, reference = (build(name, 5, seed=0).module for _ in range(2))
    found = torch.stack([batch_statistics(ours, images) for images in batches])
    set_statistics(ours, found.double().mean(0), len(batches))
    reference.eval()
    for layer in with_statistics(reference):
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None
    with torch.no_grad():
        for images in batches:
            reference(images)
    expected = reference.state_dict()
    assert len(with_statistics(ours)) > 10
    for path, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[path], msg=path)


def test_statistics_of_a_batch_know_nothing_of_the_one_before() -> None:
    module = build(NETWORKS[0], 5, seed=0).module
    images = torch.randn(2, 4, 3, 64, 64)
    first = batch_statistics(module, images[0])
    batch_statistics(module, images[1])
    assert torch.equal(batch_statistics(module, images[0]), first)
