"""What the device does of augmentation: drawn by image or place, the same on any number of ranks."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycnn.config import AugmentConfig, load_config
from raycnn.data.dataset import Batch
from raycnn.data.draws import ERASE, ERASE_AREA, ERASE_LEFT, ERASE_RATIO, ERASE_TOP, HFLIP, NUM_DRAWS, VFLIP
from raycnn.data.keyed import uniforms
from raycnn.data.plan import plan_of
from raycnn.data.reader import PADDING
from raycnn.data.transforms import train_view
from raycnn.errors import ConfigError
from raycnn.training.augmenting import _MIX_DRAWS, DeviceViews, beta
from raycnn.training.feed import Feed
from raycnn.training.losses import Mixed
from raycnn.training.setup import Body, facts_of
from tests.support.feeds import CPU, NETWORK, World
from tests.support.images import pixels
from tests.support.ranks import on_ranks

SIDE = 32


def views(side: int = SIDE, **settings: Any) -> DeviceViews:
    augment = AugmentConfig.model_validate({"crop_scale": None, "hflip": 0, **settings})
    return DeviceViews(augment, seed=3, side=side)


def draws(number: int, seed: int = 1) -> Any:
    return uniforms(seed, np.zeros(number, np.int64), np.arange(number, dtype=np.uint64), NUM_DRAWS)


def ones(number: int) -> Tensor:
    return torch.ones(number, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)


def test_flips_have_the_bits_of_flips_of_each_image_alone() -> None:
    from PIL import Image

    late, rows = views(hflip=0.5, vflip=0.3), draws(40)
    images = np.stack([pixels(number, SIDE, SIDE) for number in range(40)])
    flipped = late.flip(torch.from_numpy(images), rows).numpy()
    for before, after, row in zip(images, flipped, rows, strict=True):
        alone = train_view(Image.fromarray(before), replace(NETWORK.preprocessing, image_size=SIDE), late.augment, row)
        assert np.array_equal(after, alone)
    assert 0 < (rows[:, HFLIP] < 0.5).sum() < 40
    assert 0 < (rows[:, VFLIP] < 0.3).sum() < 40


def test_a_rectangle_is_erased_where_the_draws_say() -> None:
    late, rows = views(erase=0.5, erase_scale=(0.25, 0.25), erase_ratio=(0.25, 4)), draws(4)
    rows[:, ERASE] = 0.49, 0.51, 0.49, 0.49
    rows[:, ERASE_AREA], rows[:, ERASE_RATIO] = 0.3, (0.5, 0.5, 1.0, 0.5)
    rows[:, ERASE_LEFT], rows[:, ERASE_TOP] = (0.0, 0.0, 0.0, 0.5), (0.999, 0.0, 0.0, 0.5)
    erased = late.erase(ones(4), rows, np.array([True, True, True, False]))
    expected = ones(4)
    expected[0, :, 16:, :16] = 0
    expected[2, :, :8, :] = 0  # four times as wide as high, and cut at nothing
    assert torch.equal(erased, expected)


def test_erasing_keeps_its_statistics() -> None:
    late, rows = views(erase=0.25), draws(2000)
    erased = late.erase(ones(2000), rows, np.ones(2000, bool))[:, 0] == 0
    share = erased.float().mean((1, 2))
    assert abs((share > 0).float().mean() - 0.25) < 0.03
    found = share[share > 0]
    assert found.min() > 0.015
    assert found.max() < 0.35
    assert abs(found.mean() - 0.175) < 0.01
    cover = erased.float().mean(0)
    assert cover[10:22, 10:22].mean() > 1.5 * cover[0].mean()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    rows = uniforms(5, np.zeros(20_000, np.int64), np.arange(20_000, dtype=np.uint64), _MIX_DRAWS)[:, 4 - 1 :]
    found = np.sort(beta(np.full(20_000, alpha), rows))
    exact = np.sort(np.random.default_rng(0).beta(alpha, alpha, 200_000))[5::10]
    assert np.abs(found - exact).mean() < 0.005
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_even_the_smallest_alpha_gives_a_share() -> None:
    rows = uniforms(5, np.zeros(1000, np.int64), np.arange(1000, dtype=np.uint64), _MIX_DRAWS)[:, 3:]
    found = beta(np.full(1000, 1e-4), rows)
    assert np.isfinite(found).all()
    assert 400 < (found > 0.5).sum() < 600


def test_mixup_blends_with_the_neighbour() -> None:
    late = views(mixup=1.0)
    mix = late.mix(7, 0, np.ones(6, bool))
    assert mix.partners_N.tolist() == [1, 0, 3, 2, 5, 4]
    images = torch.randn(6, 3, SIDE, SIDE)
    shares = torch.from_numpy(mix.shares_N).float()[:, None, None, None]
    expected = images * shares + images[[1, 0, 3, 2, 5, 4]] * (1 - shares)
    assert torch.equal(late.mixed(images, mix), expected)
    assert len(set(mix.shares_N)) == 6


def test_cutmix_takes_a_rectangle_and_its_share_is_what_is_left() -> None:
    late = views(cutmix=1.0)
    mix = late.mix(7, 0, np.ones(200, bool))
    images = torch.arange(200.0)[:, None, None, None].expand(200, 3, SIDE, SIDE).contiguous()
    mixed = late.mixed(images, mix)
    own = mixed == images
    other = mixed == images[mix.partners_N]
    assert (own | other).all()
    assert np.allclose(own[:, 0].float().mean((1, 2)), mix.shares_N)
    for place in range(200):
        rows, columns = np.nonzero(other[place, 0].numpy())
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a rectangle
    assert abs(mix.shares_N.mean() - 0.679) < 0.05  # 1/2 + 1/5 - 1/48: boxes are cut at the border


def test_partners_do_not_lie_together() -> None:
    late = replace(views(mixup=1.0), apart=8)
    partners = late.mix(0, 0, np.ones(32, bool)).partners_N
    assert (np.abs(partners - np.arange(32)) == 8).all()
    assert (partners[partners] == np.arange(32)).all()
    base = {"run": {"name": "r", "storage": "/x"}, "model": {"name": "reference/lenet"}}
    for neighbours, apart in ((1, 1), (2, 2), (5, 8), (8, 8)):
        assert load_config({**base, "data": {"source": "/y", "neighbours": neighbours}}).apart == apart
    with pytest.raises(ConfigError, match="pairs"):
        load_config(
            {**base, "data": {"source": "/y", "neighbours": 8}, "augment": {"mixup": 1}, "train": {"global_batch": 8}}
        )


def test_both_come_by_even_chance() -> None:
    late = views(mixup=0.3, cutmix=1.0)
    boxes = late.mix(0, 0, np.ones(2000, bool)).boxes_N4
    assert 0.4 < (boxes != 0).any(1).mean() < 0.55


def test_mixing_depends_on_step_and_place_alone() -> None:
    late = views(mixup=0.4, cutmix=1.0)
    whole, images = late.mix(5, 0, np.ones(24, bool)), torch.randn(24, 3, SIDE, SIDE)
    mixed = late.mixed(images, whole)
    for world in (2, 3, 4, 6, 12):
        each = 24 // world
        for rank in range(world):
            own = slice(rank * each, (rank + 1) * each)
            part = late.mix(5, rank * each, np.ones(each, bool))
            assert np.array_equal(part.shares_N, whole.shares_N[own])
            assert torch.equal(late.mixed(images[own], part), mixed[own])
    assert not np.array_equal(late.mix(6, 0, np.ones(24, bool)).shares_N, whole.shares_N)
    assert not np.array_equal(replace(late, seed=4).mix(5, 0, np.ones(24, bool)).shares_N, whole.shares_N)


def test_a_masked_row_and_its_partner_stay_as_they_are() -> None:
    late = views(mixup=1.0, cutmix=1.0)
    valid = np.ones(40, bool)
    valid[::6] = False
    mix, images = late.mix(1, 0, valid), torch.randn(40, 3, SIDE, SIDE)
    alone = ~valid | ~valid[mix.partners_N]
    assert (mix.shares_N[alone] == 1).all()
    assert torch.equal(late.mixed(images, mix)[alone], images[alone])
    assert (mix.shares_N[~alone] < 1).all()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, None, 8)  # type: ignore[arg-type]
    for module in ("training.feed", "training.reuse"):
        monkeypatch.setattr(f"raycnn.{module}.stream", made.stream)
    return made


ALL = AugmentConfig(hflip=0.5, vflip=0.5, erase=0.5, mixup=0.5, cutmix=0.5)


class Half:
    """Of two ranks."""

    world = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def feed(world: World, ranks: Any = None) -> Feed:
    task = world.task(ALL)
    made = world.plain(task)
    return made if ranks is None else Feed(task, world.prefix, CPU, ranks, world.total)


def seen(made: Feed, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Batch]:
    batch = made.batch(step)
    targets, valid = made.targets(batch)
    assert isinstance(targets, Mixed)
    inputs = made.inputs(batch, {"all"})["all"]
    return inputs, targets.first_N, targets.second_N, targets.shares_N * valid, batch


def test_two_ranks_see_what_one_does(world: World) -> None:
    alone, halves = feed(world), [feed(world, Half(rank)) for rank in (0, 1)]
    for step in range(8):
        whole, parts = seen(alone, step), [seen(each, step) for each in halves]
        for number in range(4):
            assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])


def test_a_stream_that_begins_in_the_middle_sees_the_same(world: World) -> None:
    first, later = feed(world), feed(world)
    whole = [seen(first, step) for step in range(8)]
    for step in (3, 4, 7):
        for one, other in zip(seen(later, step)[:4], whole[step][:4], strict=True):
            assert torch.equal(one, other)


def test_an_image_that_cannot_be_read_poisons_nobody(world: World) -> None:
    made, found = feed(world), 0
    for step in range(8):
        inputs, _, _, shares, batch = seen(made, step)
        assert inputs.isfinite().all()
        for place in np.flatnonzero(batch.rows == PADDING):
            assert shares[place] == 0
            assert shares[place ^ 1] == (1 if batch.rows[place ^ 1] != PADDING else 0)
            found += 1
    assert found


def trained(world: World, ranks: Any, steps: range, start: Any = None) -> Any:
    """A learner's state after these steps of everything there is, with rows resampled and in two views each."""
    config = load_config(
        {
            "run": {"name": "r", "storage": "/x"},
            "data": {"source": "/y", "resample": "balanced"},
            "model": {"name": "reference/lenet", "unfreeze": 1},
            "train": {"exact": True, "global_batch": 8, "virtual_shards": 4, "chunk": 4},
            "augment": {**ALL.model_dump(), "crop_scale": [0.6, 1], "policy": "randaugment", "views": 2},
        }
    )
    body = Body(config, facts_of(config, ("a", "b", "c")), CPU)
    learner = body.copied_learner(config, ranks, None)
    if start:
        learner.restore(*copy.deepcopy(start))
    task = world.task(config.augment)
    task = replace(task, table=task.table.sort_by("label"))
    made = Feed(replace(task, plan=plan_of(config, task.table)), body.prefix, CPU, ranks, world.total)
    learner.enter(1)
    for step in steps:
        batch = made.batch(step)
        targets, valid = made.targets(batch)
        learner.backward(made.inputs(batch, {learner.base})[learner.base], targets, valid, 8.0, step)
        learner.step(0.01)
    return learner.snapshot()


def test_any_number_of_ranks_and_any_interruption_end_with_the_same_bits(world: World) -> None:
    torch.set_num_threads(1)
    (whole,) = on_ranks(1, lambda ranks: trained(world, ranks, range(5)))
    (half,) = on_ranks(1, lambda ranks: trained(world, ranks, range(3)))
    others = on_ranks(2, lambda ranks: trained(world, ranks, range(5)))
    others += on_ranks(4, lambda ranks: trained(world, ranks, range(3, 5), half))
    for weights, _ in others:
        assert [name for name in weights if not torch.equal(weights[name], whole[0][name])] == []
    assert any(not torch.equal(half[0][name], whole[0][name]) for name in half[0])


def test_validation_is_left_alone(world: World) -> None:
    made, plain = feed(world), world.plain(replace(world.task(), device_views=None))
    for one, other in zip(made.validation(), plain.validation(), strict=True):
        assert torch.equal(made.inputs(one, {0})[0], plain.inputs(other, {0})[0])


def test_images_lie_in_memory_as_without(world: World) -> None:
    made = feed(world)
    assert made.inputs(made.batch(0), {"all"})["all"].is_contiguous(memory_format=torch.channels_last)
