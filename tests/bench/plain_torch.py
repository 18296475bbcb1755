"""python -m tests.bench.plain_torch SIDE CASE: the trials of the search in one process, without Ray.

unshared: one after the other in the plain way at its best: decoded pixels in memory, the prefix in eval mode without
gradients. cached: the ideal: the prefix once over the views of all epochs, each suffix on what came out of it.
Order, views, optimizer and schedule are raycnn's, so that losses can be compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from raycnn.data.keyed import derive_seed
from raycnn.data.plan import Plan
from raycnn.data.reader import COLUMNS, ImageReader
from raycnn.models.batchnorm import set_mode
from raycnn.models.stages import Split, find
from raycnn.training.device import Normalize, in_chunks, prepare
from raycnn.training.due import evaluation_due
from raycnn.training.losses import cross_entropy_sum
from raycnn.training.metrics import classification_metrics
from raycnn.training.optim import build_optimizer, learning_rate
from tests.bench.case import DEPTHS, LEARNING_RATES, Case


@dataclass(frozen=True)
class Inputs:
    """What a trial reads: a tensor for each step, and one for each chunk of validation rows, the last one padded."""

    train: list[Tensor]
    val: list[Tensor]

    def through(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        with torch.no_grad():
            return Inputs([function(batch) for batch in self.train], [function(chunk) for chunk in self.val])


class Trials:
    """A warm process: network, order and labels, the same for every trial."""

    def __init__(self, case: Case, threads: int) -> None:
        prepare(torch.device("cpu"), threads)
        self.config, self.index = case.config, case.index
        self.train, self.val = case.index.rows("train"), case.index.rows("val")
        self.seed = derive_seed(self.config.train.seed, "data")
        self.plan = Plan(len(self.train), self.config.train.global_batch, self.seed)
        self.steps = self.plan.steps(self.config.train.epochs)
        self.rows, self.epochs = self.plan.share(0, steps=self.steps)
        network = case.network()
        self.module = network.module.to(memory_format=torch.channels_last)
        self.initial = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.stages, self.preprocessing = find(network), network.preprocessing
        self.normalize = Normalize(network.preprocessing)

    def pixels(self) -> Inputs:
        """uint8[rows, S, S, 3], all decoded."""
        data, chunk = self.config.data, self.config.train.chunk
        view = ImageReader.of(data, self.index.source, self.preprocessing, augment=self.config.augment, seed=self.seed)
        scan = ImageReader.of(data, self.index.source, self.preprocessing)
        padded = np.full(-(-len(self.val) // chunk) * chunk, -1)
        padded[: len(self.val)] = np.arange(len(self.val))
        train, val = read(view, self.train, self.rows, self.epochs), read(scan, self.val, padded, padded * 0)
        return Inputs(list(train.split(self.plan.global_batch)), list(val.split(chunk)))

    def part(self, deep: int | str, shallow: int) -> Callable[[Tensor], Tensor]:
        """The frozen layers between two depths, in chunks; from the images on for `all`."""
        layers = self.stages.between(deep, shallow)
        assert layers is not None
        layers.eval().requires_grad_(False)
        if deep == "all":
            return lambda images: in_chunks(layers, self.normalize(images), self.config.train.chunk)
        return lambda inputs: in_chunks(layers, inputs, self.config.train.chunk)

    def trial(self, depth: int, lr: float, inputs: Inputs, prefix: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Train and evaluate; `prefix` is what the inputs have not been through yet."""
        start = time.perf_counter()
        self.module.load_state_dict(self.initial)
        split = Split(None, self.stages.suffix(depth))
        set_mode(split, "frozen")
        optim = self.config.optim.model_copy(update={"lr": lr})
        optimizer = build_optimizer(split.suffix.named_parameters(), optim)
        labels = torch.from_numpy(self.train["label"].to_numpy()[self.rows].astype(np.int64))
        evaluations = []
        for step, labels_N in enumerate(labels.split(self.plan.global_batch)):
            torch.manual_seed(derive_seed(self.config.train.seed, f"step {step} rank 0"))
            with torch.no_grad():
                features = prefix(inputs.train[step])
            loss = cross_entropy_sum(
                split.suffix(features), labels_N, torch.ones_like(labels_N, dtype=torch.bool),
                label_smoothing=self.config.loss.label_smoothing,
            )  # fmt: skip
            (loss * (1 / len(labels_N))).backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self.steps, self.plan.steps_per_epoch, optim)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if evaluation_due(step + 1, self.config.train.eval_every, self.plan, self.steps):
                evaluations.append(self.evaluate(split.suffix, inputs, prefix))
                set_mode(split, "frozen")
        best = max(metrics["accuracy"] or 0 for metrics in evaluations)
        seconds = time.perf_counter() - start
        return {"lr": lr, "depth": depth, "seconds": seconds, "accuracy": best, "loss": evaluations[-1]["loss"]}

    def evaluate(self, suffix: nn.Module, inputs: Inputs, prefix: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        suffix.eval()
        with torch.inference_mode():
            logits_NK = torch.cat([suffix(prefix(chunk)) for chunk in inputs.val])[: len(self.val)]
        return classification_metrics(logits_NK.numpy(), self.val["label"].to_numpy().astype(np.int64))


def read(reader: ImageReader, table: pa.Table, rows: Any, epochs: Any) -> Tensor:
    images_NHWC, reasons = reader.read(table.select(COLUMNS), rows, epochs)
    assert not any(reasons)
    return torch.from_numpy(images_NHWC)


def unshared(trials: Trials, lrs: list[float]) -> dict[str, Any]:
    start = time.perf_counter()
    pixels = trials.pixels()
    reading = time.perf_counter() - start
    done = [trials.trial(depth, lr, pixels, trials.part("all", depth)) for depth in DEPTHS for lr in lrs]
    return {"reading": reading, "prefix": 0.0, "trials": done}


def cached(trials: Trials, lrs: list[float]) -> dict[str, Any]:
    start = time.perf_counter()
    inputs = trials.pixels()
    read = time.perf_counter()
    kept, before = {}, "all"
    for depth in DEPTHS:
        inputs = kept[depth] = inputs.through(trials.part(before, depth))
        before = depth
    passed = time.perf_counter()
    done = [trials.trial(depth, lr, kept[depth], lambda inputs: inputs) for depth in DEPTHS for lr in lrs]
    return {"reading": read - start, "prefix": passed - read, "trials": done}


def main() -> None:
    """Prints {reading, prefix, trials: [{lr, depth, seconds, accuracy, loss}]} as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("unshared", "cached"))
    parser.add_argument("case", type=Path)
    parser.add_argument("--lrs", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    trials = Trials(Case.read(options.case), options.threads)
    side = {"unshared": unshared, "cached": cached}[options.side]
    print(json.dumps(side(trials, options.lrs)))


if __name__ == "__main__":
    main()
