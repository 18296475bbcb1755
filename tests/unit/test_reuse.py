"""A feed that takes from the node's cache gives what a plain one gives, bit for bit, and reads each image once.

Unit tests have no Ray: tests.support.feeds reads the same images, in the same order, in this process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycnn.config import AugmentConfig
from raycnn.data.dataset import Batch
from raycnn.data.reader import PADDING
from raycnn.storage.cache import Cache
from raycnn.training.feed import Feed, Task
from raycnn.training.reuse import KeptBatch, ReusingFeed
from tests.support.feeds import World

STEPS = 6  # of 4 rows, 10 rows in all: two epochs and a bit


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, Cache(tmp_path / "node", 10**8), STEPS)
    for module in ("training.feed", "training.reuse"):
        monkeypatch.setattr(f"raycnn.{module}.stream", made.stream)
    yield made
    for feed in made.feeds:
        feed.close()


def assert_batch(plain: Feed, one: Batch, feed: Feed, other: Batch, depths: set[int]) -> None:
    assert one.rows.tolist() == other.rows.tolist()
    assert one.failures == other.failures
    wanted, given = plain.inputs(one, depths), feed.inputs(other, depths)
    there = one.rows != PADDING
    for depth in depths:
        assert given[depth].dtype == wanted[depth].dtype
        assert torch.equal(given[depth][there], wanted[depth][there])


def assert_same(world: World, feed: ReusingFeed, depths: set[int], steps: range = range(STEPS)) -> None:
    """Every batch of training and validation is the plain feed's."""
    reads, plain = world.reads.copy(), world.plain(feed.task)
    for step in steps:
        assert_batch(plain, plain.batch(step), feed, feed.batch(step), depths)
    scanned = list(zip(plain.validation(), feed.validation(), strict=True))
    for one, other in scanned:
        assert_batch(plain, one, feed, other, depths)
    assert {row for one, _ in scanned for row, _ in one.failures} == {3}
    world.reads = reads


def spied_turns(world: World) -> list[str]:
    """Names of the turns that feeds of the world ask for from now on, in another cache than before."""
    names: list[str] = []

    class Spy(Cache):
        def turn(self, name: str, *, wait: bool) -> Any:
            names.append(name)
            return super().turn(name, wait=wait)

    world.cache = Spy(world.folder / "elsewhere", 10**8)
    return names


AUGMENTS = {
    "random": AugmentConfig(),
    "mixed": AugmentConfig(erase=0.5, mixup=0.4, cutmix=1.0),
    "flipped": AugmentConfig(crop_scale=None, erase=0.5),
    "still": None,
}
CHOICES = {
    "activations": {0: "activations", 2: "activations"},
    "pixels": {0: "pixels", 2: "pixels"},
    "both": {0: "activations", 2: "pixels"},
    "images": {3: "activations", 1: "activations"},
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_a_kept_batch_is_the_plain_one(world: World, choices: Any, augment: Any, precision: torch.dtype) -> None:
    world.set_precision(precision)
    feed = world.reusing(world.task(augment), choices)
    feed.prepare(0, STEPS)
    filled = world.reads.copy()
    taken = [feed.batch(step) for step in range(STEPS)] + list(feed.validation())
    assert all(isinstance(batch, KeptBatch) for batch in taken)
    assert world.reads == filled
    (failure,) = {each for batch in taken[:STEPS] for each in batch.failures}
    assert failure == (3, "changed since it was indexed")
    assert_same(world, feed, set(choices))
    if "pixels" in choices.values():
        assert np.array_equal(taken[0].images_NHWC, world.plain(feed.task).batch(0).images_NHWC)


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_two_packs_read_each_view_of_an_image_once_in_all(world: World, augment: Any) -> None:
    task, choices = world.task(augment), CHOICES["activations"]
    one, other = (world.reusing(task, choices, turn, 2) for turn in range(2))
    for start, stop in ((0, 3), (3, STEPS)):
        one.prepare(start, stop)
        filled = world.reads.copy()
        other.prepare(start, stop)
        assert world.reads == filled
        for feed in (one, other):
            assert_same(world, feed, set(choices), range(start, stop))
    assert len({key for key, _ in world.reads}) == 16
    if augment:  # step 6 ends in the middle of the third epoch
        assert len(world.reads) == 10 + 10 + 4 + 6
        assert set(world.reads.values()) == {1}


@pytest.mark.parametrize(("few", "parts"), [(True, STEPS + 2), (False, 2 + 2)], ids=["few", "many"])
def test_no_pack_waits_for_much_where_images_are_few(
    world: World, monkeypatch: pytest.MonkeyPatch, few: bool, parts: int
) -> None:
    names = spied_turns(world)
    monkeypatch.setattr("raycnn.training.reuse.are_few", lambda *_: few)
    feed = world.reusing(world.task(AugmentConfig()), CHOICES["activations"], 0, 2)
    feed.prepare(0, STEPS)
    assert len(set(names)) == parts
    assert_same(world, feed, {0, 2})


def test_a_pack_begins_with_its_own_turn_and_leaves_to_another_what_that_one_computes(world: World) -> None:
    task, choices = world.task(AugmentConfig()), CHOICES["activations"]
    names = spied_turns(world)
    world.reusing(task, choices, 1, 2).prepare(0, 2)
    (mine, other), world.order = names[:2], []
    assert mine != other
    world.cache = Cache(world.folder / "node", 10**8)
    code = (
        "import sys; from pathlib import Path; from raycnn.storage.cache import Cache\n"
        "with Cache(Path(sys.argv[1]), 10**8).turn(sys.argv[2], wait=True):\n"
        "    print(flush=True); sys.stdin.readline()"
    )
    arguments = [sys.executable, "-c", code, str(world.cache.folder), mine]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        held, read = process.stdin, world.stream

        def release(*args: Any, **kwargs: Any) -> Iterator[Batch]:
            if not held.closed:
                held.close()  # the other pack dies in the middle of its turn
            return read(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raycnn.training.reuse.stream", release)
            world.reusing(task, choices, 1, 2).prepare(0, 2)
    first, second = ([(f"{row:02d}.png", 0) for row in task.plan.share(step)[0]] for step in (0, 1))
    assert world.order[:8] == first + second  # turn 0 was left for last, and done all the same


def damage(cache: Cache, slots: int) -> int:
    """Flip a bit of the first row of every table of so many rows; how many tables there are."""
    tables = [marks.parent for marks in cache.folder.glob("*/*/marks") if marks.stat().st_size == 8 * slots]
    for table in tables:
        data = bytearray((table / "rows").read_bytes())
        data[0] ^= 1
        (table / "rows").write_bytes(data)
    return len(tables)


def again(world: World, task: Task, choices: Any, slots: int) -> ReusingFeed:
    """A feed of another process, after its rows were damaged."""
    first = world.reusing(task, choices)
    first.prepare(0, STEPS)
    first.close()
    assert damage(world.cache, slots) == 1  # the activations
    feed = world.reusing(task, choices)
    filled = world.reads.copy()
    feed.prepare(0, STEPS)
    assert world.reads == filled
    world.reads.clear()
    return feed


def test_a_batch_with_a_damaged_row_comes_from_the_stream(world: World) -> None:
    task, choices = world.task(), {0: "activations"}
    feed = again(world, task, choices, slots=10)
    hit = [step for step in range(STEPS) if 0 in task.plan.share(step)[0]]
    assert 0 < len(hit) < STEPS
    given = [isinstance(feed.batch(step), KeptBatch) for step in range(STEPS)]
    assert given == [step not in hit for step in range(STEPS)]
    assert sum(world.reads.values()) == 4 * len(hit)
    assert_same(world, feed, {0})
    feed.prepare(0, STEPS)
    assert isinstance(feed.batch(hit[0]), KeptBatch)


def test_a_damaged_row_of_validation_comes_from_the_stream_and_is_kept_anew(world: World) -> None:
    task, choices = world.task(), {0: "activations"}
    feed = again(world, task, choices, slots=6)
    assert_same(world, feed, {0})
    world.reads.clear()
    feed.prepare(0, STEPS)
    assert {key for key, _ in world.reads} == {f"{number}.png" for number in range(10, 14)}, "its chunk"
    assert_same(world, feed, {0})


def test_depths_that_change_from_segment_to_segment_all_find_what_they_need(world: World) -> None:
    task, choices = world.task(), {0: "activations", 1: "activations", 2: "pixels"}
    feed = world.reusing(task, choices)
    for start, depths in ((0, {1}), (1, {0, 1}), (2, {0}), (3, {2}), (4, {0, 3}), (5, {0, 1, 2})):
        feed.prepare(start, start + 1)
        assert_same(world, feed, depths, range(start, start + 1))
    world.reads.clear()
    feed.prepare(0, STEPS)
    assert not world.reads


def test_packs_whose_trials_have_other_depths_use_the_same_rows(world: World) -> None:
    task, choices = world.task(AugmentConfig()), CHOICES["activations"]
    one, other = (world.reusing(task, choices, turn, 2) for turn in range(2))
    one.prepare(0, STEPS)
    assert_same(world, one, {0})
    filled = world.reads.copy()
    other.prepare(0, STEPS)
    assert world.reads == filled
    assert_same(world, other, {2})


def test_rows_that_are_kept_went_through_the_prefix_once(world: World) -> None:
    feed = world.reusing(world.task(AugmentConfig()), CHOICES["activations"])
    assert not world.prefix.rows
    feed.prepare(0, STEPS)
    for step in range(STEPS):
        feed.inputs(feed.batch(step), {0, 2})
    assert world.prefix.rows == {2: 4 * STEPS + 8, 0: 4 * STEPS + 8}


def test_a_depth_that_is_shared_makes_the_stream_serve_all(world: World) -> None:
    feed = world.reusing(world.task(), {0: "activations", 1: "share"})
    feed.prepare(0, STEPS)
    assert not world.reads
    assert not isinstance(feed.batch(0), KeptBatch)
    assert_same(world, feed, {0, 1})


def test_a_cache_without_room_changes_no_bit(world: World) -> None:
    world.cache = Cache(world.folder / "full", 100)
    feed = world.reusing(world.task(), {0: "activations"})
    feed.prepare(0, STEPS)
    assert not isinstance(feed.batch(0), KeptBatch)
    assert_same(world, feed, {0})


def test_other_weights_or_views_take_nothing_from_each_other(world: World) -> None:
    task, choices = world.task(AugmentConfig()), {0: "activations"}
    world.reusing(task, choices).prepare(0, 1)
    seeds = replace(task, reader=replace(task.reader, seed=4))
    for feed in (world.reusing(seeds, choices), world.reusing(task, choices, weights="other")):
        world.reads.clear()
        feed.prepare(0, 1)
        assert {key for key, _ in world.reads} >= {f"{row:02d}.png" for row in task.plan.share(0)[0]}
    mixing = world.task(AugmentConfig(mixup=0.4))
    assert mixing.device_views is not None
    stronger = replace(mixing.device_views, augment=AugmentConfig(mixup=0.5))
    world.reads.clear()
    world.reusing(mixing, choices).prepare(0, 3)  # every row of epoch 0
    assert world.reads
    for other in (replace(mixing, plan=replace(mixing.plan, seed=1)), replace(mixing, device_views=stronger)):
        world.reads.clear()
        world.reusing(other, choices).prepare(0, 1)
        assert world.reads
    world.reads.clear()
    moved = replace(task, reader=replace(task.reader, source=f"{world.folder}/", fetch_threads=2))
    world.reusing(moved, choices).prepare(0, 1)
    assert not world.reads
