"""Sums over virtual shards: the same bits for any number of ranks, which are threads here that take turns."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raycnn.config import load_config
from raycnn.training import exact
from raycnn.training.exact import add_ranks, shards, tree_sum
from raycnn.training.learner import Learner
from raycnn.training.setup import Body, facts_of
from tests.support.ranks import Simulated, on_ranks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As training has it; each rank that is a thread would have a pool of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def values(seed: int, number: int) -> list[list[Tensor]]:
    """For each shard the gradients of three parameters, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 10 ** (6 * torch.rand(shape, generator=generator) - 3)

    return [[draw(7), draw(2, 3, 1, 1), draw(5, 4)] for _ in range(number)]


def total(seed: int, number: int, world: int) -> list[list[Tensor]]:
    """What each rank has in the end."""

    def work(ranks: Simulated) -> list[Tensor]:
        each = number // world
        own = values(seed, number)[ranks.rank * each : (ranks.rank + 1) * each]
        found = tree_sum(iter(own))
        add_ranks(found, ranks)
        return found

    return on_ranks(world, work)


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4), st.data())
def test_any_partition_over_ranks_gives_the_same_bits(seed: int, depth: int, data: st.DataObject) -> None:
    world = 1 << data.draw(st.integers(0, depth))
    ((expected),) = total(seed, 1 << depth, 1)
    assert all(same(found, expected) for found in total(seed, 1 << depth, world))


def test_it_is_the_tree_over_neighbours() -> None:
    a, b, c, d = (shard[0] for shard in values(3, 4))
    expected = (a + b) + (c + d)
    assert torch.equal(tree_sum(iter(values(3, 4)))[0], expected)
    assert not torch.equal(((a + b) + c) + d, expected)  # the order shows in the bits


@pytest.mark.parametrize("limit", [1, 8, 12])
def test_buckets_change_no_bit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = total(0, 4, 1)
    monkeypatch.setattr(exact, "BUCKET_ELEMENTS", limit)
    assert all(same(found, expected) for found in total(0, 4, 2))


def test_few_branches_are_held_at_once() -> None:
    made: list[weakref.ref[Tensor]] = []

    def branches() -> Iterator[list[Tensor]]:
        for _ in range(16):
            branch = [torch.ones(3)]
            made.append(weakref.ref(branch[0]))
            yield branch
            del branch
            assert sum(each() is not None for each in made) <= 5

    assert tree_sum(branches())[0].tolist() == [16.0] * 3


@pytest.mark.parametrize("number", [0, 3, 6])
def test_other_than_a_power_of_two_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="unpack"):
        tree_sum(iter(values(0, number)))


def test_shards_are_whole_and_lie_in_memory_of_their_own() -> None:
    images = torch.arange(8.0 * 3 * 2 * 2).reshape(8, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    found = list(shards(images, 2))
    assert torch.equal(torch.cat([part for _, part in found]), images)
    assert [place for place, _ in found] == [slice(start, start + 2) for start in (0, 2, 4, 6)]
    assert all(part.is_contiguous(memory_format=torch.channels_last) for _, part in found)
    assert all(part.data_ptr() % 64 == 0 for _, part in found)
    with pytest.raises(ValueError, match="no whole number"):
        list(shards(images, 3))


CONFIG = load_config(
    {
        "run": {"name": "r", "storage": "/x"},
        "data": {"source": "/y", "image_size": 32},
        "model": {"name": "torchvision/mobilenet_v3_small", "unfreeze": 1},  # BatchNorm, dropout
        "optim": {"clip_norm": 0.5},
        "train": {"exact": True, "global_batch": 16, "virtual_shards": 4, "chunk": 8},
    }
)


@cache
def body() -> Body:
    return Body(CONFIG, facts_of(CONFIG, ("a", "b", "c")), CPU)


def learner(ranks: Any, **changes: Any) -> Learner:
    config = load_config(CONFIG, changes)
    made = body().copied_learner(config, ranks, None)
    made.enter(1)
    return made


def trained(world: int, **changes: Any) -> tuple[list[dict[str, Tensor]], list[float]]:
    """The weights of every rank after three steps, and the losses of all shards in the last."""

    def work(ranks: Simulated) -> tuple[dict[str, Tensor], list[float]]:
        made, losses = learner(ranks, **changes), torch.zeros(0)
        channels = next(made._split.suffix.parameters()).shape[1]
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(16, channels, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
            own = slice(ranks.rank * 16 // world, (ranks.rank + 1) * 16 // world)
            labels, valid = torch.arange(16) % 3, torch.arange(16) != 5
            losses = made.backward(inputs[own], labels[own], valid[own], 15.0, step)
            made.step(0.01)
        return {name: tensor.clone() for name, tensor in made.module.state_dict().items()}, losses.tolist()

    found = on_ranks(world, work)
    return [weights for weights, _ in found], [loss for _, losses in found for loss in losses]


def test_a_learner_ends_with_the_same_bits_on_any_number_of_ranks() -> None:
    ((expected,), losses) = trained(1)
    assert len(losses) == len(set(losses)) == 4
    for world in (2, 4):
        weights, found = trained(world)
        assert found == losses
        for each in weights:
            assert [name for name in expected if not torch.equal(each[name], expected[name])] == []


def test_the_number_of_shards_is_what_decides() -> None:
    ((four,), _), ((two,), _) = trained(1), trained(1, **{"train.virtual_shards": 2})
    assert any(not torch.equal(four[name], two[name]) for name in four)
