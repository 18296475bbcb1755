"""The frozen part of a network: one pass feeds every depth, with the bits that a pass of its own would give."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from torch import Tensor, nn

from raycnn.models.stages import find
from raycnn.models.zoo import build
from raycnn.training.device import Normalize, autocast, in_chunks
from raycnn.training.prefix import Prefix

CPU = torch.device("cpu")
CHUNK = 4
IMAGES = torch.randint(0, 256, (10, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def prefix(name: str = "reference/lenet", precision: torch.dtype = torch.float32) -> Prefix:
    network = build(name, 3, seed=0, image_size=32)
    stages = find(network)
    network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Prefix(stages, Normalize(network.preprocessing), CHUNK, precision)


def apart(made: Prefix, depth: int | str) -> Tensor:
    return made.taps(IMAGES, [depth])[depth]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["reference/lenet", "timm/test_efficientnet"])
def test_depths_in_one_pass_have_the_bits_of_separate_passes(name: str, precision: torch.dtype) -> None:
    made = prefix(name, precision)
    every = [*range(made.stages.num_stages + 1), "c5.0" if "lenet" in name else "blocks.3.0.bn1"]
    alone = {depth: apart(made, depth) for depth in every}
    for depths in chain.from_iterable(combinations(every, size) for size in (2, 3, len(every))):
        together = made.taps(IMAGES, depths)
        assert together.keys() == set(depths)
        assert all(torch.equal(tap, alone[depth]) for depth, tap in together.items())
        assert all(tap.dtype == alone[depth].dtype for depth, tap in together.items())
    assert alone[0].dtype == precision


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_tap_through_its_suffix_is_the_network(precision: torch.dtype) -> None:
    made = prefix("timm/test_efficientnet", precision)
    network = made.stages.suffix("all").eval()
    with torch.no_grad(), autocast(CPU, precision):
        whole = in_chunks(network, made.normalize(IMAGES), CHUNK)
        for depth, tap in made.taps(IMAGES, range(made.stages.num_stages + 1)).items():
            assert torch.equal(in_chunks(made.stages.suffix(depth).eval(), tap, CHUNK), whole), depth


def test_going_on_from_a_tap_is_the_same_as_from_the_images() -> None:
    made = prefix()
    taps = made.taps(IMAGES, [0, 1, 2])
    onward = made.onward(taps[2], 2, [0, 1, 2])
    assert onward[2] is taps[2]
    assert all(torch.equal(onward[depth], taps[depth]) for depth in taps)


def test_an_images_bits_depend_on_no_neighbour() -> None:
    made = prefix()
    whole = apart(made, 0)
    assert torch.equal(made.taps(IMAGES[3:9], [0])[0], whole[3:9])
    assert torch.equal(made.taps(IMAGES[[7]], [0])[0], whole[[7]])


def test_every_pass_has_the_same_number_of_rows() -> None:
    made, seen = prefix(), []
    layer = next(module for module in made.stages.suffix("all").modules() if isinstance(module, nn.Conv2d))
    layer.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    made.taps(IMAGES, [2, 0])
    made.taps(IMAGES[:1], [1])
    assert seen == [CHUNK] * 4


def test_rows_count_once_for_each_cut_that_they_are_computed_to() -> None:
    made = prefix()
    made.taps(IMAGES, [2, 0])
    assert made.rows == {2: 10, 0: 10}
    made.taps(IMAGES[:3], [1])
    assert made.rows == {2: 10, 0: 10, 1: 3}
    made.taps(IMAGES, [made.stages.num_stages])  # nothing lies before it
    assert made.rows == {2: 10, 0: 10, 1: 3}
    made.onward(apart(made, 1)[:5], 1, [1, 0])
    assert made.rows == {2: 10, 0: 15, 1: 13}


def test_it_stands_still_whatever_the_network_was_doing() -> None:
    made = prefix("timm/test_efficientnet")
    network = made.stages.suffix("all")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    still = apart(made, 0)
    network.train().requires_grad_(True)
    other = Prefix(made.stages, made.normalize, CHUNK, torch.float32)
    tap = apart(other, 0)
    assert torch.equal(tap, still)
    assert not tap.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
