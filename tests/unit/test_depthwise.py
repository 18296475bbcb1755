from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from raycnn.models.depthwise import PaddedConv2d, pad_depthwise


def both(size: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, PaddedConv2d, torch.Tensor]:
    """A depthwise layer, the same one padded, and what goes in."""
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 24, kernel, stride, kernel // 2, groups=24).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    padded = nn.Sequential(copy.deepcopy(layer))
    pad_depthwise(padded)
    assert isinstance(padded[0], PaddedConv2d)
    return layer, padded[0], torch.randn(8, 24, size, size).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(4, 5, 1), (2, 3, 1), (8, 5, 1), (4, 7, 1), (7, 5, 2), (1, 3, 1)]
)
def test_outputs_and_gradients_are_those_of_the_layer(size: int, kernel: int, stride: int) -> None:
    layer, padded, images = both(size, kernel, stride)
    found = []
    for each in (layer, padded):
        inputs = images.clone().requires_grad_()
        outputs = each(inputs)
        (outputs.square().sum()).backward()
        found.append((outputs, inputs.grad, *(parameter.grad for parameter in each.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_only_small_outputs_of_weights_that_train_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    pads = []
    monkeypatch.setattr("torch.nn.functional.pad", lambda inputs, sizes: pads.append(sizes) or torch.zeros(1, 24, 8, 8))
    _, padded, images = both(4, 5)
    with torch.no_grad():
        padded(images)
    padded(torch.randn(1, 24, 5, 5))
    assert pads == []
    padded(images)
    assert pads == [(2, 2, 2, 2)]
    padded.requires_grad_(False)
    padded(images)
    assert len(pads) == 1


def test_other_convolutions_stay_and_so_do_names() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 3, padding=1, groups=8),
    )  # fmt: skip
    before = [*network.state_dict()]
    pad_depthwise(network)
    assert [type(layer) is PaddedConv2d for layer in network] == [False, False, False, False, True]
    assert [*network.state_dict()] == before
