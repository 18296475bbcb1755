"""Two ranks without Ray, for ratios of what they do: processes that meet over gloo and take turns with the sides."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raycnn.training.device import prepare
from raycnn.training.ranks import Ranks

WORLD = 2
CPU = torch.device("cpu")


def on_ranks(work: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """What work(ranks, *arguments) gives back on rank 0 of WORLD ranks."""
    with multiprocessing.get_context("spawn").Pool(WORLD) as pool:
        meet = folder / f"meet-{time.monotonic_ns()}"
        found = pool.starmap(_rank, [(work, rank, str(meet), arguments) for rank in range(WORLD)], chunksize=1)
    return found[0]


def seconds(ranks: Ranks, work: Callable[[], Any]) -> float:  # all ranks
    """From the moment when all ranks are there until all have done it."""
    ranks.sum([0.0])
    start = time.perf_counter()
    work()
    ranks.sum([0.0])
    return time.perf_counter() - start


def _rank(work: Callable[..., Any], rank: int, meet: str, arguments: tuple[Any, ...]) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=WORLD)
    prepare(CPU, 1)
    try:
        return work(Ranks(), *arguments)
    finally:
        dist.destroy_process_group()
