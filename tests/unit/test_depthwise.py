from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from raycnn.models import depthwise
from raycnn.models.depthwise import DepthwiseConv2d, speed_up_depthwise


def both(size: int, kernel: int) -> tuple[nn.Conv2d, DepthwiseConv2d, torch.Tensor]:
    """A depthwise layer, the same one made fast, and what goes in."""
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 24, kernel, padding=kernel // 2, groups=24).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = nn.Sequential(copy.deepcopy(layer))
    speed_up_depthwise(fast)
    assert isinstance(fast[0], DepthwiseConv2d)
    return layer, fast[0], torch.randn(8, 24, size, size).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "kernel"), [(4, 5), (2, 3), (8, 5), (4, 7), (1, 3)])
def test_outputs_and_gradients_are_those_of_the_layer(size: int, kernel: int) -> None:
    layer, fast, images = both(size, kernel)
    found = []
    for each in (layer, fast):
        inputs = images.clone().requires_grad_()
        outputs = each(inputs)
        (outputs.square().sum()).backward()
        found.append((outputs, inputs.grad, *(parameter.grad for parameter in each.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_gradient_lies_in_memory_as_the_weight_does() -> None:
    _, fast, images = both(4, 5)
    fast(images).sum().backward()
    assert fast.weight.grad is not None
    assert fast.weight.grad.stride() == fast.weight.stride()


def test_only_small_outputs_of_weights_that_train_are_made_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        depthwise, "_grad_weight", lambda input, *_: made.append(input.shape) or torch.zeros(24, 1, 5, 5)
    )
    _, fast, images = both(4, 5)
    fast(torch.randn(1, 24, 5, 5)).sum().backward()
    assert made == []
    fast(images).sum().backward()
    assert made == [images.shape]
    fast.requires_grad_(False)
    fast(images.requires_grad_()).sum().backward()
    assert len(made) == 1


def test_other_convolutions_stay_and_so_do_names() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 3, padding=1, groups=8),
    )  # fmt: skip
    before = [*network.state_dict()]
    speed_up_depthwise(network)
    assert [type(layer) is DepthwiseConv2d for layer in network] == [False, False, False, False, True]
    assert [*network.state_dict()] == before
