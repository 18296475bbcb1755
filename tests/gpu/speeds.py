"""What compiling and sending images ahead are worth on a device, and that they change no more than they may."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycnn.config import Config, load_config
from raycnn.data.dataset import Batch
from raycnn.training.device import prepare, to_device
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, facts_of
from raycnn.training.transfer import Transfer
from tests.bench.command import Row

PASSES = 20
TOLERANCE = 0.05
"""Of the largest value: bf16 has 8 bits, and a network of 50 layers rounds often."""


def speeds(config: Config, device: torch.device) -> list[Row]:
    """Rows for the frozen prefix, a step of the suffix, and the way onto the device; `config` is a search's."""
    prepare(device, config.train.threads)
    eager, fast = (_Side(config, device, setting) for setting in ("none", "all"))
    gap = float((eager.tap - fast.tap).abs().max() / eager.tap.abs().max())
    assert gap <= TOLERANCE, f"the compiled prefix differs by {gap:.2g} of the largest value"
    return [
        _row("frozen prefix compiled", fast.prefix, "eager", eager.prefix),
        _row("training step compiled, of what trains", fast.step, "eager", eager.step),
        _row("prefix, images sent ahead", _stream(fast, ahead=True), "sent when needed", _stream(fast, ahead=False)),
    ]


class _Side:
    """A network eager or compiled, and its images a second."""

    def __init__(self, config: Config, device: torch.device, setting: str) -> None:
        config = load_config(config, {"train.compile": setting, "model.unfreeze": 1})
        facts = facts_of(config, ("a", "b"))
        self.body, self.rows, side = Body(config, facts, device), config.train.chunk, facts.preprocessing.image_size
        self.images = np.random.default_rng(0).integers(0, 256, (self.rows, side, side, 3), np.uint8)
        learner = self.body.learner(config, Ranks(), None)
        learner.enter(1)
        there = to_device(self.images, device)
        self.tap = self.through(there)
        labels = torch.zeros(self.rows, dtype=torch.int64, device=device)

        def step() -> None:
            learner.backward(self.tap, labels, labels == 0, self.rows, step=0)
            learner.step(1e-6)

        self.prefix = self._rate(lambda: self.through(there))
        self.step = self._rate(step)

    def through(self, images: Tensor) -> Tensor:
        return self.body.prefix.taps(images, [1])[1]

    def _rate(self, work: Callable[[], Any]) -> float:
        for _ in range(3):
            work()
        _wait(self.body.device)
        start = time.perf_counter()
        for _ in range(PASSES):
            work()
        _wait(self.body.device)
        return PASSES * self.rows / (time.perf_counter() - start)


def _stream(side: _Side, *, ahead: bool) -> float:
    """Images a second from numpy through the prefix; what arrives is what was sent."""
    way = Transfer(side.body.device)

    def batches() -> Iterator[Batch]:
        for number in range(PASSES):
            yield Batch(side.images + np.uint8(number), np.arange(side.rows), ())

    arrived = []
    start = time.perf_counter()
    for batch in way.ahead(batches()) if ahead else batches():
        images = way.take(batch.images_NHWC)
        side.through(images)
        arrived.append(images.sum(dtype=torch.int64))
    _wait(side.body.device)
    seconds = time.perf_counter() - start
    assert [int(each) for each in arrived] == [int(batch.images_NHWC.sum(dtype=np.int64)) for batch in batches()]
    return PASSES * side.rows / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(what: str, ours: float, label: str, theirs: float) -> Row:
    return f"{what}, images/s", f"{ours:.0f}", f"{label} {theirs:.0f}", f"{ours / theirs:.2f}", "-"
