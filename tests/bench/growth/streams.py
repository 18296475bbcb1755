"""What Ray Data takes beside the decoding: streams of blocks that cost nothing, in the two designs.

per_rank: what raycnn does, each rank reads a stream of its own. ordered: one stream for all ranks, its blocks dealt out
in turn by Ray Data's streaming_split. Ranks are actors that compute nothing.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa

from raycnn.data.dataset import TrainOrder, _pace, batches_of, blocks, stream
from raycnn.data.decode import Limits
from raycnn.data.plan import Plan
from raycnn.data.reader import ImageReader, Images
from raycnn.data.transforms import Preprocessing
from tests.bench.growth.processes import cpu_seconds, loop_seconds

ROWS = 8
"""Of a block: all costs here are per block."""
BLOCKS, WARM = 400, 50
"""Of a stream; those that come before anything is counted."""
_READER_CPUS = 0.02
_turns = Counter[str]()
_KINDS = ("coordinator", "raylet", "gcs", "task")
_FEW, _MANY, _SLEEP_S = 4, 16, 1.0
_BLOCK_BYTES = 256 * 224 * 224 * 3


@dataclass(frozen=True)
class Instant(ImageReader):
    """Gives black images of one pixel for nothing, or after some seconds."""

    wait_s: float = 0.0
    side: int = 1

    def read(self, table: pa.Table, rows: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]) -> Images:
        time.sleep(self.wait_s)
        return Images(np.zeros((len(rows), self.side, self.side, 3), np.uint8), [""] * len(rows), 0, 0)


@dataclass(frozen=True)
class AllRanks:
    """The orders of all ranks as one: their blocks in turn."""

    order: TrainOrder

    @property
    def num_blocks(self) -> int:
        return self.order.num_blocks * self.order.world

    @property
    def batch_rows(self) -> int:
        return self.order.batch_rows

    def block(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        own, rank = divmod(number, self.order.world)
        return replace(self.order, rank=rank).block(own)


class Reader:
    """A rank that does nothing but read, from the moment that all are there."""

    def ready(self) -> None:
        """Returns when the process is up."""

    def read(self, order: TrainOrder, share: Any, reader: Instant, task_cpus: float) -> dict[str, float]:
        """Seconds to the first block, then blocks and seconds once WARM have come, with this process's CPU seconds.

        Args:
            share: this rank's part of the one ordered stream; None: a stream of its own.
        """
        start, table = time.perf_counter(), table_of(order)
        if share is None:
            with patch("raycnn.data.dataset._pace", _counting):
                batches = stream(reader, table, order, task_cpus=task_cpus)
                rows = (batch.rows for batch in itertools.chain([next(batches)], batches))
        else:
            rows = (got["row"] for got in batches_of(share, batch_size=ROWS, prefetch_batches=2))
        marks: list[Counter[str]] = []
        first, last = 0.0, order.num_blocks - 5  # the loop's thread is gone at the end
        for number, got in enumerate(rows):
            assert np.array_equal(got, order.block(number)[0])  # one step a block
            if number == 0:
                first = time.perf_counter() - start
            if number in (WARM, last):
                marks.append(self._marks(order.rank))
        marks[1].subtract(marks[0])
        return {"first": first, "blocks": last - WARM, **marks[1]}

    def _marks(self, rank: int) -> Counter[str]:
        """What clocks show: this process's, its scheduling loops', and on rank 0 those of all other processes."""
        raylet = psutil.Process().parent()
        assert raylet is not None
        marks = cpu_seconds(raylet.parent()) if rank == 0 else Counter[str]()
        marks.update({"now": time.perf_counter(), "own": time.process_time(), "loop": loop_seconds(), **_turns})  # type: ignore[arg-type]
        return marks

    def hold(self, order: TrainOrder, reader: Instant, task_cpus: float, seconds: float) -> None:
        """Take one batch and compute on it for so long."""
        next(batches := stream(reader, table_of(order), order, task_cpus=task_cpus))
        time.sleep(seconds)
        batches.close()


def table_of(order: TrainOrder) -> pa.Table:
    return pa.table({"key": [""] * order.plan.num_rows})


def orders(world: int, num_blocks: int, rows: int = ROWS) -> list[TrainOrder]:
    plan = Plan(10_000, rows * world, 0)
    return [TrainOrder(plan, rank, world, 0, num_blocks, 1) for rank in range(world)]


def run(world: int, *, ordered: bool, tasks: int, wait_s: float = 0.0, num_blocks: int = BLOCKS) -> dict[str, float]:
    """What a block costs by process, and blocks a second over all ranks.

    Args:
        tasks: decoding tasks at once, over all streams.
        wait_s: that a task sleeps.
    """
    import ray

    reader, task_cpus = _instant(wait_s), (ray.cluster_resources()["CPU"] - 0.2) / tasks
    actors, todo = _actors(world), orders(world, num_blocks)
    shares: list[Any] = [None] * world
    if ordered:
        every = AllRanks(todo[0])
        dataset = blocks(reader, table_of(todo[0]), every, task_cpus=task_cpus, first=0, last=every.num_blocks)
        shares = dataset.streaming_split(world, equal=True)
    calls = [
        a.read.remote(order, share, reader, task_cpus) for a, order, share in zip(actors, todo, shares, strict=True)
    ]
    found = ray.get(calls)
    for actor in actors:
        ray.kill(actor)
    of_first = found[0]["blocks"] * world  # while rank 0 read its own, the others read as many
    told = {f"{kind}_s": round(found[0].get(kind, 0.0) / of_first, 6) for kind in _KINDS}
    own = {name: sum(each[name] / each["blocks"] for each in found) / world for name in ("own", "loop")}
    return told | {
        "world": world, "tasks": tasks, "wait_s": wait_s, "first_s": round(max(each["first"] for each in found), 3),
        "blocks_per_s": round(sum(each["blocks"] / each["now"] for each in found), 1),
        "turns_per_s": round(sum(each.get("turns", 0) / each["now"] for each in found) / world, 1),
        "rank_s": round(own["own"], 6), "loop_s": round(own["loop"], 6),
    }  # fmt: skip


def overcommitted(world: int, seconds: float = 12.0) -> dict[str, float]:
    """What lies in the object store, and beside it on disk, when ranks compute for long on their first batch."""
    import ray
    from ray._private.internal_api import memory_summary

    capacity = ray.cluster_resources()["object_store_memory"]
    actors, todo = _actors(world), orders(world, 1000, 256)
    reader = replace(_instant(0.0), side=224)
    calls = [actor.hold.remote(order, reader, 0.4, seconds) for actor, order in zip(actors, todo, strict=True)]
    peak, text = 0.0, ""
    while ray.wait(calls, num_returns=world, timeout=1)[1]:
        free = ray.available_resources().get("object_store_memory", capacity)
        peak = max(peak, capacity - free)
        text = memory_summary(stats_only=True)
    for actor in actors:
        ray.kill(actor)
    (spilled,) = [line for line in text.splitlines() if line.startswith("Spilled")] or ["Spilled 0 MiB"]
    return {"world": world, "capacity": capacity, "peak": peak, "spilled": float(spilled.split()[1]) * 2**20}


def measure() -> dict[str, Any]:
    """Both designs with 1, 2 and 4 ranks; a loop that watches few and many tasks; decoding too far ahead."""
    from raycnn.cluster import connect

    with connect():
        cold = run(1, ordered=False, tasks=_FEW, num_blocks=WARM + 10)
        worlds = (1, 2, 4)
        found: dict[str, Any] = {"cold_first_s": cold["first_s"]}
        found["per_rank"] = [run(world, ordered=False, tasks=_FEW) for world in worlds]
        found["ordered"] = [run(world, ordered=True, tasks=_FEW) for world in worlds]
        few, many = (
            run(1, ordered=False, tasks=n, wait_s=_SLEEP_S, num_blocks=WARM + 5 + 10 * n) for n in (_FEW, _MANY)
        )
        found["sleeping"] = [few, many]
        found["ahead"] = [overcommitted(world) for world in (1, 2, 4)]
    return found


def _counting() -> type:
    """raycnn's pause between the turns of a scheduling loop, counted."""

    class Counting(_pace()):  # type: ignore[misc]
        def on_execution_step(self, executor: Any) -> None:
            _turns["turns"] += 1
            super().on_execution_step(executor)

    return Counting


def _actors(world: int) -> list[Any]:
    import ray

    actors = [ray.remote(Reader).options(num_cpus=_READER_CPUS).remote() for _ in range(world)]
    ray.get([actor.ready.remote() for actor in actors])
    return actors


def _instant(wait_s: float) -> Instant:
    nothing = Preprocessing(1, 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3)
    return Instant("/nowhere", nothing, Limits(1, 1), wait_s=wait_s)
