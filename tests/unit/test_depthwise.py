from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raycnn.models.depthwise import DepthwiseConv2d, _by_columns, _by_pairs, _counts, speed_up_depthwise


def both(size: Any, kernel: Any, padding: int | None = None) -> tuple[nn.Conv2d, DepthwiseConv2d, torch.Tensor]:
    """A depthwise layer, the same one made fast, and what goes in: a side, or height and width."""
    torch.manual_seed(0)
    height, width = (side // 2 if padding is None else padding for side in np.broadcast_to(kernel, 2).tolist())
    layer = nn.Conv2d(24, 24, kernel, padding=(height, width), groups=24).to(memory_format=torch.channels_last)
    fast = nn.Sequential(copy.deepcopy(layer))
    speed_up_depthwise(fast)
    assert isinstance(fast[0], DepthwiseConv2d)
    return layer, fast[0], torch.randn(8, 24, *np.broadcast_to(size, 2)).to(memory_format=torch.channels_last)


SIZES = [(4, 5), (2, 3), (8, 5), (4, 7), (1, 3), (7, 7), (9, 9), (12, 11), (5, 4), (3, 2)]
UNEVEN = [((3, 9), (5, 3)), ((9, 3), (3, 5)), ((20, 4), (2, 5))]
LAYERS = [
    (size, kernel, padding)
    for size, kernel in [*SIZES, *UNEVEN]
    for padding in (None, 0, 1, 5)
    if padding is None or (np.add(size, 2 * padding) >= kernel).all()  # else nothing comes out
]


@pytest.mark.parametrize(("size", "kernel", "padding"), LAYERS)
def test_outputs_and_gradients_are_those_of_the_layer(size: Any, kernel: Any, padding: int | None) -> None:
    layer, fast, images = both(size, kernel, padding)
    found = []
    for each in (layer, fast):
        each, inputs = each.double(), images.double().requires_grad_()
        outputs = each(inputs)
        outputs.square().sum().backward()
        found.append((outputs, inputs.grad, *(parameter.grad for parameter in each.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 7, 8, 9, 11, 31])
def test_columns_are_made_a_few_at_a_time_evenly_around_the_middle(kernel: int) -> None:
    counts = _counts(kernel)
    assert sum(counts) == kernel
    assert max(counts) <= 3
    assert len(counts) % 2 == 1
    assert sum(counts[: len(counts) // 2]) == sum(counts[len(counts) // 2 + 1 :])


def test_the_gradient_lies_in_memory_as_the_weight_does() -> None:
    _, fast, images = both(4, 5)
    fast(images).sum().backward()
    assert fast.weight.grad is not None
    assert fast.weight.grad.stride() == fast.weight.stride()


def _graph_of(outputs: torch.Tensor) -> set[str]:
    """Names of what outputs came about by."""
    found, ahead = set(), [outputs.grad_fn]
    while ahead:
        if (each := ahead.pop()) is not None:
            found.add(each.name())
            ahead += [before for before, _ in each.next_functions]
    return found


@pytest.mark.parametrize(
    ("size", "kernel", "way"),
    [(4, 5, _by_pairs), (2, 3, _by_pairs), (7, 5, _by_columns), (7, 7, _by_columns), (7, 3, None), ((90, 2), 3, None)],
)
def test_what_onednn_is_fast_at_stays_with_it(size: Any, kernel: int, way: Any) -> None:
    _, fast, images = both(size, kernel)
    assert fast._grad_weight(images) is way
    made = "_DepthwiseBackward" in _graph_of(fast(images))
    assert made == (way is not None)
    fast.weight.requires_grad_(False)
    assert "_DepthwiseBackward" not in _graph_of(fast(images))


@pytest.mark.parametrize("size", [4, 7])
def test_autocast_works_as_in_the_layer(size: int) -> None:
    layer, fast, images = both(size, 5)
    for each in (layer, fast):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = each(images)
        assert outputs.dtype == torch.bfloat16
        outputs.float().sum().backward()
    assert fast.weight.grad is not None
    assert layer.weight.grad is not None
    assert torch.equal(fast.weight.grad, layer.weight.grad)


def test_other_convolutions_stay_and_so_do_names() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 3, padding=1, groups=8),
    )  # fmt: skip
    before = [*network.state_dict()]
    speed_up_depthwise(network)
    assert [type(layer) is DepthwiseConv2d for layer in network] == [False, False, False, False, True]
    assert [*network.state_dict()] == before
