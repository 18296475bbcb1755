"""What the model is fed with: costs that were measured, a cluster and a load that are assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Design = Literal["ordered", "per rank"]
"""One ordered stream for all ranks, or one stream for each rank."""


@dataclass(frozen=True)
class Costs:
    """Measured on one machine.

    Args:
        image_cpu_s: CPU of a task for an image: fetching from an object store, checking, decoding, cropping.
        image_bytes: of an image as it is stored.
        view_bytes: of an image as it travels to its rank.
        image_requests: to the object store for an image.
        task_s: CPU of a task's process for a block beside that.
        raylet_s: CPU of Ray's daemon on a node for a block.
        gcs_s: CPU of Ray's one process on the head node for a block.
        block_s: CPU of a scheduling loop for a block.
        turn_s: CPU of a scheduling loop for a turn, whatever it finds.
        watch_s: CPU of a scheduling loop in a turn for each task that is under way.
        split_s: CPU of the one ordered stream's process for a block beside its loop, to deal it out.
        rank_s: CPU of a rank for a block beside its loop.
        controller_s: CPU of Train's controller for each second of a rank.
    """

    image_cpu_s: float
    image_bytes: float
    view_bytes: float
    image_requests: float
    task_s: float
    raylet_s: float
    gcs_s: float
    block_s: float
    turn_s: float
    watch_s: float
    split_s: float
    rank_s: float
    controller_s: float


@dataclass(frozen=True)
class Cluster:
    """Assumed: nodes like the larger GPU instances of a cloud, and S3's documented rate for one prefix.

    Args:
        nodes: all of them decode; ranks fill one node after the other, as Ray Train places them.
        node_gpus: of each.
        node_cpus: of each, as fast as those measured; every rank on it keeps one.
        node_bytes_s: what a node's network carries in each direction.
        node_store_bytes: of Ray's object store on a node.
        requests_s: GETs that the object store answers.
        latency_s: of one GET; a task has 16 under way.
    """

    nodes: int = 8
    node_gpus: int = 8
    node_cpus: int = 96
    node_bytes_s: float = 12.5e9
    node_store_bytes: float = 100e9
    requests_s: float = 5500.0
    latency_s: float = 0.03


@dataclass(frozen=True)
class Load:
    """Assumed.

    Args:
        gpus: ranks.
        gpu_rate: images a second that a GPU trains on if it never waits.
        block_images: of a decoding task.
        ahead: blocks of each rank that may be decoded or under way before it asks for them.
        pace_s: rest of a scheduling loop between two turns: Ray Data waits 0.1 s for its tasks, raycnn adds 0.025 s.
        spread: by how much of the mean the seconds of tasks differ at most.
        rounds: blocks of each rank.
    """

    gpus: int
    gpu_rate: float
    block_images: int = 256
    ahead: int = 24
    pace_s: float = 0.125
    spread: float = 0.3
    rounds: int = 400


def costs_of(measured: dict[str, Any]) -> Costs:
    """The model's costs from what `measure` gives."""
    streams, objects = measured["streams"], measured["decoding"]["objects"]
    one = streams["per_rank"][0]
    turn_s, watch_s, block_s = _loop(streams["per_rank"][0], *streams["sleeping"])
    split = min(run["coordinator_s"] for run in streams["ordered"])
    few_ranks, many_ranks = measured["controllers"]["train"]
    return Costs(
        image_cpu_s=objects["cpu_s"],
        image_bytes=objects["bytes"],
        view_bytes=objects["view_bytes"],
        image_requests=sum(measured["requests"]["image"].values()),
        task_s=one["task_s"],
        raylet_s=one["raylet_s"],
        gcs_s=one["gcs_s"],
        block_s=block_s,
        turn_s=turn_s,
        watch_s=watch_s,
        split_s=max(0.0, split - one["loop_s"]),
        rank_s=one["rank_s"] - one["loop_s"],
        controller_s=max(0.0, many_ranks["controller_s"] - few_ranks["controller_s"])
        / (many_ranks["world"] - few_ranks["world"]),
    )


def _loop(*runs: dict[str, float]) -> tuple[float, ...]:
    """(turn_s, watch_s, block_s) of the loop, told apart by three runs with other turns, tasks and blocks a second."""
    parts = [(run["turns_per_s"], run["turns_per_s"] * run["tasks"], run["blocks_per_s"]) for run in runs]
    taken = [run["loop_s"] * run["blocks_per_s"] for run in runs]
    return tuple(max(0.0, float(each)) for each in np.linalg.solve(parts, taken))
