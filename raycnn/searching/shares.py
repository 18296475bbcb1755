"""What the trials of a pack have in common, by share key: one network, one stream, one account of the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import torch

from raycnn.config import Config, Depth, identity, load_config
from raycnn.data.folds import as_fold, fold_of
from raycnn.data.manifest import Index
from raycnn.errors import CheckpointError
from raycnn.memory import keep_what_lives
from raycnn.searching.costs import Costs
from raycnn.searching.measure import measure
from raycnn.searching.shared import share_key, start_folder
from raycnn.storage import Store
from raycnn.training import checkpoint
from raycnn.training.asked import problem_of
from raycnn.training.badrows import BadRows
from raycnn.training.clock import Clock
from raycnn.training.feed import Feed, Task
from raycnn.training.filling import keeping_bytes
from raycnn.training.kept import Choice
from raycnn.training.ranks import Ranks
from raycnn.training.reuse import Reuse, ReusingFeed, cache_of
from raycnn.training.run import read_run
from raycnn.training.serialize import decode_weights
from raycnn.training.setup import Body, facts_of, task_of
from raycnn.training.teaching import load_teacher

_KEPT: Final = 4


@dataclass(frozen=True)
class PackJob:
    """What the driver tells every pack.

    Args:
        config: the search's.
        index: hash of the pinned index.
        owner: of the lease of the run.
        task_cpus: Ray CPUs of one decoding task.
    """

    config: Config
    index: str
    owner: str
    task_cpus: float


@dataclass(frozen=True)
class Keeping:
    """What the packs keep in the cache of their nodes: a choice for each depth; parts, and whose turn is first."""

    choices: dict[Depth, Choice]
    turn: int
    turns: int


@dataclass
class Shared:
    """What trials of one share key have in common."""

    body: Body
    feed: Feed
    bad_rows: BadRows
    clock: Clock


class Shares:
    """The networks and streams of one rank, made when a trial first needs them.

    Args:
        job: the driver's word.
        storage: the root of run.storage.
        index: the pinned index.
        ranks: of the pack.
        device: where to compute.
    """

    def __init__(self, job: PackJob, storage: Store, index: Index, ranks: Ranks, device: torch.device) -> None:
        self._job, self._index, self._ranks, self._device = job, index, ranks, device
        self._run = storage.child(job.config.run.name)
        self._cache = cache_of(job.config.cache, storage)
        self._keeping = Keeping({}, 0, 1)
        self._shared: dict[str, Shared] = {}
        self._rows: Counter[Depth] = Counter()
        self._seconds: Counter[str] = Counter()

    def __getitem__(self, key: str) -> Shared:
        return self._shared[key]

    def of(self, config: Config) -> Shared:
        """What a trial with this config shares; the last one asked for is the last to be forgotten."""
        key = share_key(config)
        if key in self._shared:
            self._shared[key] = self._shared.pop(key)
        else:
            self._shared[key] = self._make(config)
            keep_what_lives()
        return self._shared[key]

    def measure(self, values: list[dict[str, Any]]) -> Costs:  # all ranks
        """What trials with these values cost, one for each depth."""
        configs = [load_config(self._job.config, each) for each in values]
        shared = self.of(configs[0])
        return measure(configs, shared.body, shared.feed.task, self._ranks, self._cache)

    def keep(self, keeping: Keeping) -> None:  # all ranks
        """What to keep from now on; called before the first trial joins."""
        self._keeping = keeping
        for shared in self._shared.values():
            shared.feed = self._feed(shared.body, shared.feed.task, shared.feed.total)

    def forget(self, used: Collection[str]) -> None:
        """Drop what no trial uses, the oldest first, beyond a few."""
        idle = [key for key in self._shared if key not in used]
        for key in idle[: max(0, len(self._shared) - _KEPT)]:
            self._drop(self._shared.pop(key))

    def close(self) -> None:  # all ranks
        """Drop everything; what is kept in the cache stays there."""
        while self._shared:
            self._drop(self._shared.popitem()[1])

    def counters(self) -> dict[str, Any]:
        """{rows: through the prefix to each depth's cut, seconds: by phase}, of all that there was."""
        rows, seconds = self._rows.copy(), self._seconds.copy()
        for shared in self._shared.values():
            rows.update(shared.body.prefix.rows)
            seconds.update(shared.clock.seconds)
        return {"rows": dict(rows), "seconds": dict(seconds)}

    def _drop(self, shared: Shared) -> None:
        self._rows.update(shared.body.prefix.rows)
        self._seconds.update(shared.clock.seconds)
        shared.feed.close()

    def _make(self, config: Config) -> Shared:
        index, budget = as_fold(self._index, fold_of(identity(config))), config.data.bad_image_budget
        facts = facts_of(config, index.classes, problem_of(config, index))
        body = Body(config, facts, self._device)
        start = self._run.child(start_folder(config))
        commit = checkpoint.latest(start, None)
        if commit is None:
            raise CheckpointError("the trials' starting weights are gone", where=start.uri, fix="run it again")
        weights = checkpoint.verified(start, commit, ["weights.safetensors"])["weights.safetensors"]
        body.module.load_state_dict(decode_weights(weights))
        body.prefix.teacher = load_teacher(config, facts, read_run(self._run), self._device)
        task = task_of(config, facts, index, self._job.task_cpus, self._ranks.world)
        feed = self._feed(body, task, task.plan.steps(config.train.epochs))
        return Shared(body, feed, BadRows(task.table, len(index.manifest), len(index.quarantine), budget), Clock())

    def _feed(self, body: Body, task: Task, total: int) -> Feed:
        choices = self._keeping.choices
        if all(choice == "share" for choice in choices.values()):
            task = keeping_bytes(task, self._job.config) if choices else task  # nothing else is to be kept then
            return Feed(task, body.prefix, self._device, self._ranks, total)
        reuse = Reuse(self._cache, self._job.owner, choices, self._keeping.turn, self._keeping.turns)
        identity = body.identities(choices)
        return ReusingFeed(task, body.prefix, self._device, self._ranks, total, identity, reuse)
