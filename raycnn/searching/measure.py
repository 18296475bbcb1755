"""Times what trials of a search will do over and over, on the device that will do it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from raycnn.config import Config, Depth
from raycnn.data.keyed import derive_seed
from raycnn.searching.costs import Costs, CutCost
from raycnn.storage.cache import Cache
from raycnn.training.device import to_device
from raycnn.training.feed import Task
from raycnn.training.kept import to_rows
from raycnn.training.ranks import Ranks
from raycnn.training.setup import Body, loss_of


def measure(configs: Sequence[Config], body: Body, task: Task, ranks: Ranks, cache: Cache) -> Costs:  # all ranks
    """Costs of reading, of the prefix to each config's cut, and of a step of its suffix; trains nothing that is kept.

    Args:
        configs: one for each depth.
        body: the network.
        task: what the trials read.
        ranks: of the pack.
        cache: where activations would be kept.
    """
    rows = np.arange(task.chunk, dtype=np.int64) % task.plan.num_rows
    images_NHWC = task.reader.read(task.table, rows, np.zeros_like(rows)).images_NHWC  # warms up
    read_s = _seconds(lambda: task.reader.read(task.table, rows, np.zeros_like(rows)))
    images = to_device(images_NHWC, body.device)
    cuts: dict[Depth, CutCost] = {}
    depths: dict[str, Depth] = {}
    for config in configs:
        learner = body.copied_learner(config, ranks, loss_of(config, body.facts, None, body.device))
        base = depths[config.model.unfreeze_text] = learner.base
        if base in cuts:
            continue
        tap = body.prefix.taps(images, [base])[base]  # warms up
        batch = config.train.global_batch // ranks.world
        inputs = tap[torch.arange(batch, device=tap.device) % len(tap)]
        targets = torch.from_numpy(body.facts.problem.targets(task.table, np.zeros(batch, np.int64))).to(tap.device)
        valid = torch.ones(batch, dtype=torch.bool, device=tap.device)
        learner.enter(base)

        def step(learner: Any = learner, inputs: Any = inputs, targets: Any = targets, valid: Any = valid) -> None:
            learner.backward(inputs, targets, valid, len(valid), step=0)
            learner.step(1e-6)

        step()  # warms up
        prefix_s = _seconds(partial(body.prefix.taps, images, [base]))
        keep_s, take_s = _cache_seconds(cache, to_rows(tap), base)
        state = sum(p.numel() * p.element_size() for group in learner.optimizer.param_groups for p in group["params"])
        cuts[base] = CutCost(
            prefix_s=prefix_s / len(rows),
            suffix_s=_seconds(step) / batch,
            bytes=to_rows(tap)[0].nbytes,
            keep_s=keep_s / len(rows),
            take_s=take_s / len(rows),
            trial_bytes=(4 if config.train.ema is None else 5) * state,
        )
    body.prefix.rows.clear()
    return Costs(read_s / len(rows), images_NHWC[0].nbytes, cuts, depths, _memory(body.device))


def _cache_seconds(cache: Cache, rows: Any, depth: Depth) -> tuple[float, float]:
    keys = np.frombuffer(np.random.default_rng(derive_seed(0, str(depth))).bytes(32 * len(rows)), np.uint8).reshape(
        -1, 32
    )
    table = cache.table("measure", keys, rows.shape[1:], rows.dtype)
    if table is None:  # nothing can be kept
        return float("inf"), float("inf")
    ids = np.arange(len(rows))
    try:
        table.put(ids, rows)
        table.get(ids)
        return _seconds(lambda: table.put(ids, rows)), _seconds(lambda: table.get(ids))
    finally:
        table.close()


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
