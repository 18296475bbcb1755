"""Images a second of the real loop on batches in memory, against the same through Ray, and against ranks that part."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import torch

from raycnn.cluster import connect, division
from raycnn.training.feed import Feed
from raycnn.training.ranks import Ranks
from tests.bench.command import Row
from tests.bench.group import WORLD, Alone, on_ranks
from tests.bench.loops import ENDLESS, Held, Loop, Streaming, config_of
from tests.bench.pictures import write_tree

ROUNDS = 3
SIZE = 128
BATCH = 32
"""Images of a rank's step."""
CLASSES = ("one", "two")


def with_ingest(root: Path, images: int = 2000, steps: int = 32) -> list[Row]:
    """One rank trains the whole network, with JPEGs of 500x375 px decoded by Ray's tasks or with the same in memory."""
    write_tree(root / "photos", images)
    through, held = on_ranks(_with_ingest, root, root / "photos", steps, world=1)
    name = f"compute-bound training (lite0, {SIZE} px), images/s"
    return [(name, f"{through:.1f}", f"the same batches in memory {held:.1f}", f"{through / held:.3f}", ">= 0.95")]


def _with_ingest(ranks: Ranks, folder: Path, steps: int) -> tuple[float, float]:
    settings = {
        "data.image_size": SIZE,
        "train.global_batch": BATCH,
        "train.workers": 1,
        "train.checkpoint_every": ENDLESS,
    }
    config = config_of(**settings)
    with connect():
        task_cpus = division(1).task
        through, held = (Loop(config, CLASSES, folder, ranks, task_cpus=task_cpus) for _ in range(2))
        holding = held.feed(Held)
        with closing(through.feed(Streaming)) as streaming:
            rates = _by_turns([(through, streaming), (held, holding)], holding, steps)
        theirs = held.body.module.state_dict()
        same = (torch.equal(tensor, theirs[name]) for name, tensor in through.body.module.state_dict().items())
        assert all(same), "the sides have trained on different pixels"
    return rates


def _by_turns(sides: list[tuple[Loop, Feed]], holding: Held, steps: int) -> tuple[float, ...]:
    """Median images a second of each side over the same steps."""
    rates: list[list[float]] = [[] for _ in sides]
    first, _ = sides[0]
    for number in range(ROUNDS + 1):
        # the first warms up, with more steps than a block has, so that Ray's blocks follow one another by then
        count = steps if number else first.task.steps_per_block + 2
        done = first.member.state.step
        holding.hold(range(done, done + count))
        turns = list(zip(sides, rates, strict=True))
        for (loop, feed), found in reversed(turns) if number % 2 else turns:
            _settle()
            start = time.perf_counter()
            loop.run(feed, count)
            if number:
                found.append(count * BATCH / (time.perf_counter() - start))
    print(f"images/s {rates}", file=sys.stderr, flush=True)
    return tuple(map(statistics.median, rates))


def _settle(quiet: float = 0.25, at_most_s: float = 180) -> None:
    """Wait until this process's children are idle: Ray has decoded as far ahead as it wants to and is in nobody's way.

    A round then sees the steady state: as many images are decoded as it trains on.
    """
    end = time.monotonic() + at_most_s
    while time.monotonic() < end:
        before, start = _children_cpu_s(), time.monotonic()
        time.sleep(1)
        if (_children_cpu_s() - before) / (time.monotonic() - start) < quiet:
            return


def _children_cpu_s() -> float:
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def two_ranks(root: Path, steps: int = 16) -> list[Row]:
    """DDP over two ranks against two processes that know nothing of each other, a thread and the same batches each."""
    write_tree(root / "photos", 10 * BATCH)
    rows = []
    for depth in (1, "all"):
        together, apart, megabytes = on_ranks(_two_ranks, root, root / "photos", depth, steps)
        name = f"DDP, {WORLD} ranks (lite0, {SIZE} px, depth {depth}), images/s"
        ours = f"{together:.1f} ({megabytes:.0f} MB of gradients)"
        rows.append((name, ours, f"independent processes {apart:.1f}", f"{together / apart:.3f}", ">= 0.95"))
    return rows


def _two_ranks(ranks: Ranks, folder: Path, depth: Any, steps: int) -> tuple[float, float, float]:  # all ranks
    settings = {"data.image_size": SIZE, "model.unfreeze": depth, "train.checkpoint_every": ENDLESS}
    sides = []
    for group in (ranks, Alone()):
        changes = {"train.workers": group.world, "train.global_batch": BATCH * group.world}
        loop = Loop(config_of(**settings, **changes), CLASSES, folder, group)
        feed = loop.feed(Held)
        assert isinstance(feed, Held)
        sides.append((loop, feed, []))
    for number in range(ROUNDS + 1):
        for loop, feed, rates in reversed(sides) if number % 2 else sides:
            step = loop.member.state.step
            feed.hold(range(step, step + steps))
            ranks.sum([0.0])  # all start at the same time
            start = time.perf_counter()
            loop.run(feed, steps)
            rate = steps * BATCH / (time.perf_counter() - start)
            if number:  # the first warms up
                rates.append(ranks.sum([rate])[0])
    weights = [p for group in sides[0][0].learner.optimizer.param_groups for p in group["params"]]
    together, apart = (statistics.median(rates) for _, _, rates in sides)
    return together, apart, sum(weight.nbytes for weight in weights) / 1e6
