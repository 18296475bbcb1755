"""The packs of a search: how many the cluster carries, started together and ended together."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from raycnn.cluster import CpuDivision, divide_cpus
from raycnn.config import Config
from raycnn.errors import ConfigError
from raycnn.searching.costs import Costs
from raycnn.searching.pack import Pack, Peer

CALLS_AT_ONCE: Final = 128
"""Trials that may wait in a pack."""
_SPARE_CALLS: Final = 16  # for trials that leave, and for the driver, while all others wait
_TOGETHER: Final = 8
_TASK_SHARE: Final = 0.8  # trials take a little of each CPU too, and a task that just does not fit waits for ever


@dataclass(frozen=True)
class Crew:
    """What runs at once.

    Args:
        packs: actors, or groups of them, that train.
        ranks: GPUs (or cores) of each.
        concurrent: trials at once over all packs.
        cpus: what each rank and each decoding task gets.
    """

    packs: int
    ranks: int
    concurrent: int
    cpus: CpuDivision


def num_places(config: Config, resources: dict[str, float]) -> int:
    """Ranks that a cluster with these Ray resources carries: one for each GPU, or core that a rank computes with."""
    return int(resources.get("GPU", 0)) or max(1, int(resources["CPU"] // config.train.threads))


def full_width(config: Config, resources: dict[str, float]) -> int:
    """The most workers that divide the global batch and that a cluster with these Ray resources carries."""
    return max(n for n in range(1, num_places(config, resources) + 1) if config.train.global_batch % n == 0)


def size_crew(config: Config, num_trials: int, resources: dict[str, float]) -> Crew:
    """The crew for a cluster with these Ray resources: a pack for every GPU, or every core that a rank computes with.

    Raises:
        ConfigError: the packs that the config asks for, or one pack of its workers, do not fit.
    """
    ranks, gpus, places = config.train.workers, int(resources.get("GPU", 0)), num_places(config, resources)
    fitting = places // ranks
    wanted = config.search.packs or max(1, min(fitting, num_trials))
    if wanted > fitting:
        unit = "GPUs" if gpus else "CPUs"
        raise ConfigError(
            f"{wanted} packs of {ranks} workers need {wanted * ranks} {unit}, the cluster has {places}",
            where="search.packs" if config.search.packs else "train.workers",
            fix=f"use at most {places} workers in all packs together",
        )
    division = divide_cpus(resources["CPU"], wanted * ranks, gpus=gpus > 0)
    division = replace(division, task=round(division.task * _TASK_SHARE, 3))
    concurrent = config.search.concurrent or _TOGETHER * wanted
    return Crew(wanted, ranks, min(concurrent, num_trials, CALLS_AT_ONCE), division)


def take_turns(crew: Crew, config: Config) -> Crew:
    """The crew for trials that find everything in the cache: one for each pack, more would share nothing more.

    Each is an actor that costs seconds to start, and waits for the one before it where another pack is free sooner;
    those that come later know more of the others' results.
    """
    if config.search.concurrent:
        return crew
    return replace(crew, concurrent=min(crew.concurrent, crew.packs))


def fit_memory(crew: Crew, costs: Costs, memory_bytes: float) -> Crew:
    """The crew with as many trials at once as its packs' memory holds.

    Raises:
        ConfigError: not even one trial fits beside the network.
    """
    each, trial = memory_bytes / (crew.packs * crew.ranks), max(cut.trial_bytes for cut in costs.cuts.values())
    fitting = int((each - costs.rss_bytes) // max(trial, 1))
    if fitting < 1:
        raise ConfigError(
            f"a pack has {each / 1e9:.1f} GB, needs {costs.rss_bytes / 1e9:.1f} and {trial / 1e9:.2f} for each trial",
            where="search.packs",
            fix="use fewer packs, a smaller train.global_batch or less depth",
        )
    return replace(crew, concurrent=min(crew.concurrent, fitting * crew.packs))


@contextmanager
def crew_of(crew: Crew) -> Iterator[dict[str, Any]]:
    """The packs' actors by name, starting inside: calls wait until they are there. None has begun."""
    import ray

    token = uuid.uuid4().hex[:8]
    gpus = 1 if crew.cpus.gpus else 0
    options: dict[str, Any] = {"num_cpus": crew.cpus.per_rank, "num_gpus": gpus}
    packs: dict[str, Any] = {}
    peers: list[Any] = []
    try:
        for number in range(crew.packs):
            name = f"raycnn-{token}-pack-{number}"
            own = [ray.remote(Peer).options(**options).remote() for _ in range(1, crew.ranks)]
            calls = CALLS_AT_ONCE + _SPARE_CALLS
            packs[name] = ray.remote(Pack).options(**options, name=name, max_concurrency=calls).remote(own)
            peers += own
        yield packs
        ray.get([pack.close.remote() for pack in packs.values()])
    finally:
        for actor in (*packs.values(), *peers):
            ray.kill(actor)
