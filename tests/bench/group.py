"""Ranks without Ray Train, for ratios of what they do: processes that meet over gloo and take turns with the sides."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raycnn.training.device import prepare
from raycnn.training.ranks import Ranks

WORLD = 2
CPU = torch.device("cpu")


class Alone(Ranks):
    """The only rank there is, whomever else its process meets."""

    def __init__(self) -> None:
        self.rank, self.world, self._group = 0, 1, None


def on_ranks(work: Callable[..., Any], folder: Path, *arguments: Any, world: int = WORLD) -> Any:
    """What work(ranks, *arguments) gives back on rank 0."""
    meet = str(folder / f"meet-{time.monotonic_ns()}")
    with ProcessPoolExecutor(world, multiprocessing.get_context("spawn")) as pool:  # raises if one of them dies
        futures = [pool.submit(_rank, work, rank, world, meet, arguments) for rank in range(world)]
        found = [future.result() for future in futures]
    return found[0]


def seconds(ranks: Ranks, work: Callable[[], Any]) -> float:  # all ranks
    """From the moment when all ranks are there until all have done it."""
    ranks.sum([0.0])
    start = time.perf_counter()
    work()
    ranks.sum([0.0])
    return time.perf_counter() - start


def _rank(work: Callable[..., Any], rank: int, world: int, meet: str, arguments: tuple[Any, ...]) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    prepare(CPU, 1)
    try:
        return work(Ranks(), *arguments)
    finally:
        dist.destroy_process_group()
