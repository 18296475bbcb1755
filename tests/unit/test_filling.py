"""The feed of one fit that fills the node's cache in its first epoch and reads from it in the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycnn.config import AugmentConfig, load_config
from raycnn.storage import open_store
from raycnn.storage.cache import Cache
from raycnn.training.clock import Clock
from raycnn.training.feed import Feed
from raycnn.training.filling import FillingFeed, feed_of
from raycnn.training.ranks import Ranks
from raycnn.training.reuse import KeptBatch
from raycnn.training.setup import Body, facts_of
from tests.support.feeds import CPU, World

TOTAL = 8  # steps of 4 rows, 10 rows in all: three epochs and a bit


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path / "images", Cache(tmp_path / "node", 10**8), TOTAL)
    made.folder.mkdir()
    for module in ("training.feed", "training.reuse"):
        monkeypatch.setattr(f"raycnn.{module}.stream", made.stream)
    yield made
    for feed in made.feeds:
        feed.close()


class Ours:
    """A feed as `raycnn train` makes it, and its world."""

    def __init__(self, world: World, augment: AugmentConfig | None = None, depth: Any = 0, **settings: Any) -> None:
        self.world, self.task = world, world.task(augment)
        one_node = settings.pop("one_node", True)
        total = settings.pop("total", TOTAL)
        run = {"run": {"name": "r", "storage": str(world.folder.parent)}, "data": {"source": "/y"}}
        base = {**run, "model": {"name": "reference/lenet"}, "cache": {"folder": str(world.cache.folder)}}
        config = load_config(base, settings)
        body = Body(config, facts_of(config, ("a", "b", "c")), CPU)
        self.prefix = body.prefix
        storage, clock = open_store(config.run.storage), Clock()
        self.feed: Feed = feed_of(
            config, self.task, body, Ranks(), depth, total, storage, "start", clock, one_node=one_node
        )
        if isinstance(self.feed, FillingFeed):
            world.feeds.append(self.feed)

    def epoch(self, steps: range, depth: Any = 0) -> tuple[list[Any], set[tuple[str, int]]]:
        """Inputs of the suffix at each of the steps, after which it validates; and what was read for it."""
        before = self.world.reads.copy()
        found = [(batch, self.feed.inputs(batch, {depth})[depth]) for batch in map(self.feed.batch, steps)]
        found += [(batch, self.feed.inputs(batch, {depth})[depth]) for batch in self.feed.validation()]
        return found, set(self.world.reads - before)


def assert_same(ours: list[Any], plain: list[Any]) -> None:
    for (batch, tap), (other, expected) in zip(ours, plain, strict=True):
        assert batch.rows.tolist() == other.rows.tolist()
        assert batch.failures == other.failures
        there = batch.rows != -1
        assert torch.equal(tap[there], expected[there])


@pytest.mark.parametrize(("reuse", "through"), [("activations", 12 + 8), ("pixels", 32 + 3 * 8)])
def test_images_are_read_once_and_all_batches_are_the_plain_ones(world: World, reuse: str, through: int) -> None:
    ours, plain = Ours(world, **{"train.reuse": reuse}), Ours(world, **{"train.reuse": "none"})
    assert type(plain.feed) is Feed
    for steps in (range(3), range(3, 5), range(5, 8)):
        expected, _ = plain.epoch(steps)
        found, read = ours.epoch(steps)
        assert_same(found, expected)
        assert len({key for key, _ in read}) == (16 if steps.start == 0 else 0)
        assert any(isinstance(batch, KeptBatch) for batch, _ in found) == (steps.start > 0)
    assert ours.prefix.rows[0] == through  # places of all steps, and of the chunks of validation rows


def test_pixels_are_kept_where_only_the_device_varies_them(world: World) -> None:
    varying = AugmentConfig(crop_scale=None, vflip=0.5, erase=0.5, mixup=0.4, cutmix=1.0)
    ours, plain = Ours(world, varying), Ours(world, varying, **{"train.reuse": "none"})
    assert ours.feed._dtypes == {}  # type: ignore[attr-defined]
    for steps in (range(3), range(3, 5), range(5, 8)):
        expected, _ = plain.epoch(steps)
        found, read = ours.epoch(steps)
        assert_same(found, expected)
        assert len({key for key, _ in read}) == (16 if steps.start == 0 else 0)
    still, _ = Ours(world).epoch(range(8))
    assert not torch.equal(still[3][1], Ours(world, varying).epoch(range(8))[0][3][1])


def test_the_next_start_finds_what_was_kept(world: World) -> None:
    Ours(world).epoch(range(3))
    found, read = Ours(world).epoch(range(3, 5))
    assert read == set()
    assert_same(found, Ours(world, **{"train.reuse": "none"}).epoch(range(3, 5))[0])


def test_a_start_in_the_middle_of_an_epoch_fills_what_is_missing(world: World) -> None:
    ours = Ours(world)
    Ours(world).epoch(range(1))
    found, read = ours.epoch(range(1, 5))
    assert read
    assert_same(found, Ours(world, **{"train.reuse": "none"}).epoch(range(1, 5))[0])
    assert ours.epoch(range(5, 8))[1] == set()


def test_a_damaged_row_is_computed_again(world: World) -> None:
    Ours(world).epoch(range(3))
    for rows in world.cache.folder.glob("*/*/rows"):
        (np.fromfile(rows, np.uint8) ^ 1).tofile(rows)
    found, read = Ours(world).epoch(range(3, 5))
    assert read
    assert_same(found, Ours(world, **{"train.reuse": "none"}).epoch(range(3, 5))[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": AugmentConfig()},
        {"augment": AugmentConfig(crop_scale=None, hflip=0, rotate=5)},
        {"augment": AugmentConfig(crop_scale=None), "train.reuse": "activations"},
        {"total": 3},
        {"one_node": False},
        {"cache.max_bytes": 1000},
        {"train.reuse": "none"},
        {"depth": "all", "train.reuse": "activations"},
    ],
    ids=[
        "random views",
        "rotated",
        "flipped",
        "one epoch",
        "several nodes",
        "too small",
        "not wanted",
        "nothing frozen",
    ],
)
def test_nothing_is_kept_that_cannot_be_used_again(world: World, settings: dict[str, Any]) -> None:
    ours = Ours(world, **settings)
    assert type(ours.feed) is Feed
    assert not list(world.cache.folder.glob("*/*/rows"))


@pytest.mark.parametrize("augment", [AugmentConfig(), None])
@pytest.mark.parametrize("one_node", [True, False])
def test_bytes_are_kept_whatever_the_views_and_the_nodes(
    world: World, augment: AugmentConfig | None, one_node: bool
) -> None:
    ours, plain = (Ours(world, augment, one_node=one_node, **{"train.reuse": reuse}) for reuse in ("bytes", "none"))
    for steps in (range(3), range(3, 5), range(5, 8)):
        found = ours.epoch(steps)[0]
        assert_same(found, plain.epoch(steps)[0])
        share = [batch.cached for batch, _ in found]
        if steps.start:
            assert share == [(batch.rows != -1).sum() for batch, _ in found]
    ours.feed.close()


def test_auto_keeps_bytes_of_a_store_if_they_fit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(**settings: Any) -> bool:
        feed = Ours(world, AugmentConfig(), **settings).feed
        feed.close()
        return feed.task.reader.keeper is not None

    assert not kept()  # of a directory
    monkeypatch.setattr("raycnn.training.filling.is_remote", lambda source: True)
    assert kept()
    assert not kept(**{"cache.max_bytes": 1000})
    assert not kept(total=3)
    assert not kept(**{"train.reuse": "none"})
    (world.cache.folder.parent / "file").touch()
    assert not kept(**{"cache.folder": str(world.cache.folder.parent / "file")})


def test_pixels_are_kept_where_nothing_is_frozen_and_where_activations_do_not_fit(world: World) -> None:
    assert Ours(world, depth="all").feed._dtypes == {}  # type: ignore[attr-defined]
    ours = Ours(world, depth=2, **{"cache.max_bytes": 40_000})  # 3,072 bytes an image, 4,704 an activation
    assert isinstance(ours.feed, FillingFeed)
    assert ours.feed._dtypes == {}
    ours.epoch(range(3), depth=2)
    assert len({key for key, _ in ours.epoch(range(3, 5), depth=2)[1]}) == 6  # no room for the validation rows
