"""python -m tests.bench.plain_torch SIDE CASE: the trials of the search in one process, without Ray.

unshared: one after the other in the plain way at its best: decoded pixels in memory, each trial makes its random views
of them in as many threads, the prefix in eval mode without gradients. cached: the ideal: the prefix once over the views
of all epochs, each suffix on what came out of it. Both look at the test split once at the end, as the search does.
Order, views, optimizer and schedule are raycnn's, so that losses can be compared bit by bit; torch is as it comes, or
with --own set up as raycnn does it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from raycnn.data.decode import Limits, decode
from raycnn.data.draws import NUM_DRAWS
from raycnn.data.keyed import derive_seed, uniforms
from raycnn.data.plan import Plan
from raycnn.data.transforms import eval_view, train_view
from raycnn.models.batchnorm import set_mode
from raycnn.models.depthwise import speed_up_depthwise
from raycnn.models.stages import Split, find
from raycnn.storage import open_store
from raycnn.training.device import Normalize, in_chunks, prepare
from raycnn.training.due import evaluation_due
from raycnn.training.losses import cross_entropy_sum
from raycnn.training.metrics import classification_metrics
from raycnn.training.optim import build_optimizer
from raycnn.training.schedule import learning_rate
from tests.bench.case import DEPTHS, LEARNING_RATES, Case

Steps = Sequence[Tensor]


@dataclass(frozen=True)
class Views(Sequence[Tensor]):
    """The views of each step or chunk, made anew whenever they are asked for."""

    number: int
    make: Callable[[int], Tensor]

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, step: Any) -> Any:
        if not 0 <= step < self.number:
            raise IndexError(step)
        return self.make(step)


@dataclass(frozen=True)
class Inputs:
    """What a trial reads: a tensor for each step, and one for each chunk of validation rows, the last one padded."""

    train: Steps
    val: Steps

    def through(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        with torch.no_grad():
            return Inputs([function(batch) for batch in self.train], [function(chunk) for chunk in self.val])


class Trials:
    """A warm process: network, order and labels, the same for every trial."""

    def __init__(self, case: Case, threads: int, *, own: bool) -> None:
        torch.set_num_threads(threads)
        self.threads = threads
        self.config, self.index = case.config, case.index
        self.train, self.val = case.index.rows("train"), case.index.rows("val")
        self.seed = derive_seed(self.config.train.seed, "data")
        self.plan = Plan(len(self.train), self.config.train.global_batch, self.seed)
        self.steps = self.plan.steps(self.config.train.epochs)
        self.rows, self.epochs = self.plan.share(0, steps=self.steps)
        network = case.network()
        self.module = network.module.to(memory_format=torch.channels_last)
        if own:
            prepare(torch.device("cpu"), threads)
            speed_up_depthwise(self.module)
        self.initial = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.stages, self.preprocessing = find(network), network.preprocessing
        self.normalize = Normalize(network.preprocessing)

    def views(self) -> Inputs:
        """uint8[rows, S, S, 3] of every step, from images that are decoded once."""
        config, prep = self.config, self.preprocessing
        train, val = self.decoded(self.train), self.decoded(self.val)
        hashes = self.train["key_hash"].to_numpy().astype(np.uint64)
        draws = uniforms(derive_seed(self.seed, "augment"), self.epochs, hashes[self.rows], NUM_DRAWS)
        size, pool = self.plan.global_batch, ThreadPoolExecutor(self.threads)

        def batch(step: int) -> Tensor:
            places = range(step * size, min((step + 1) * size, len(self.rows)))
            seen = pool.map(lambda at: train_view(train[self.rows[at]], prep, config.augment, draws[at]), places)
            return torch.from_numpy(np.stack([*seen]))

        return Inputs(Views(self.steps, batch), self.chunks(val, pool))

    def chunks(self, images: list[Image.Image], pool: ThreadPoolExecutor) -> Steps:
        """uint8[chunk, S, S, 3], as they are evaluated."""
        size, prep = self.config.train.chunk, self.preprocessing

        def chunk(number: int) -> Tensor:
            seen = [*pool.map(lambda image: eval_view(image, prep), images[number * size : (number + 1) * size])]
            return torch.from_numpy(np.stack(seen + [np.zeros_like(seen[0])] * (size - len(seen))))

        return Views(-(-len(images) // size), chunk)

    def decoded(self, table: pa.Table) -> list[Image.Image]:
        limits, store = Limits(10**8, 10**8), open_store(self.index.source)
        with ThreadPoolExecutor(self.threads) as pool:
            return [*pool.map(lambda key: decode(store.get(key), limits), table["key"].to_pylist())]

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

    def look_at_test(self) -> float:
        """Seconds that the whole network takes for the test split, whatever its weights are by now."""
        start = time.perf_counter()
        self.module.eval()
        images = self.decoded(self.index.rows("test"))
        with ThreadPoolExecutor(self.threads) as pool, torch.inference_mode():
            for chunk in self.chunks(images, pool):
                self.module(self.normalize(chunk))
        return time.perf_counter() - start

    def evaluate(self, suffix: nn.Module, inputs: Inputs, prefix: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        suffix.eval()
        with torch.inference_mode():
            logits_NK = torch.cat([suffix(prefix(chunk)) for chunk in inputs.val])[: len(self.val)]
        return classification_metrics(logits_NK.numpy(), self.val["label"].to_numpy().astype(np.int64))


def unshared(trials: Trials, lrs: list[float]) -> dict[str, Any]:
    start = time.perf_counter()
    views = trials.views()
    reading = time.perf_counter() - start
    done = [trials.trial(depth, lr, views, trials.part("all", depth)) for depth in DEPTHS for lr in lrs]
    return {"reading": reading, "prefix": 0.0, "trials": done}


def cached(trials: Trials, lrs: list[float]) -> dict[str, Any]:
    start = time.perf_counter()
    views = trials.views()
    inputs = Inputs([*views.train], [*views.val])
    read = time.perf_counter()
    kept, before = {}, "all"
    for depth in DEPTHS:
        inputs = kept[depth] = inputs.through(trials.part(before, depth))
        before = depth
    passed = time.perf_counter()
    done = [trials.trial(depth, lr, kept[depth], lambda inputs: inputs) for depth in DEPTHS for lr in lrs]
    return {"reading": read - start, "prefix": passed - read, "trials": done}


def main() -> None:
    """Prints {reading, prefix, trials: [{lr, depth, seconds, accuracy, loss}], test} as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("unshared", "cached"))
    parser.add_argument("case", type=Path)
    parser.add_argument("--lrs", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--own", type=int, default=0, help="1: with raycnn's settings of torch")
    options = parser.parse_args()
    trials = Trials(Case.read(options.case), options.threads, own=bool(options.own))
    side = {"unshared": unshared, "cached": cached}[options.side]
    print(json.dumps({**side(trials, options.lrs), "test": trials.look_at_test()}))


if __name__ == "__main__":
    main()
