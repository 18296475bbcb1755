"""The feed of one fit that keeps what its first epoch computes, for the epochs after it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from torch import Tensor

from raycnn.config import Config, Depth
from raycnn.data.dataset import Batch
from raycnn.data.fetch import is_remote
from raycnn.data.keeping import Keeper
from raycnn.storage import Store
from raycnn.training.clock import Clock
from raycnn.training.feed import Feed, Task
from raycnn.training.kept import Choice, Kept, Part
from raycnn.training.ranks import Ranks
from raycnn.training.reuse import Reuse, ReusingFeed, bytes_cache, cache_of, parts_of
from raycnn.training.setup import Body

_CHOICES: Final[Mapping[str, tuple[Choice, ...]]] = {
    "auto": ("activations", "pixels"),
    "activations": ("activations",),
    "pixels": ("pixels",),
    "bytes": (),
    "none": (),
}


@dataclass(frozen=True)
class FreshBatch(Batch):
    """A batch from the stream whose outputs are to be kept: where, and by which rows and epochs."""

    kept: Kept | None = None
    part: Part = (np.zeros(0, np.int64),) * 2


class FillingFeed(ReusingFeed):
    """The feed of one fit whose pixels are the same in every epoch: what it computed once it takes from the cache.

    An epoch comes from the cache if all of this rank's share of it is there, else from a stream that fills the cache.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._end, self._first, self._until, self._cached = self.total, 0, -1, False
        self._shares: list[Part] = []
        self._usable = self._train is not None and self._train.usable([0])

    @property
    def usable(self) -> bool:
        """Whether the cache has room for the training rows."""
        return self._usable

    def batch(self, step: int) -> Batch:
        """From the cache or from the stream; what comes from the stream is kept once it is computed."""
        if not self._usable:
            return Feed.batch(self, step)
        if step >= self._until or step != self._next:
            self._begin(step)
        share = self._shares[step - self._first]
        if self._cached:
            if (found := self._kept(self._train, *share, step)) is not None:
                self._next = step + 1
                return found
            self._cached, self._next = False, None  # a row is damaged: on from here by a stream
        batch = Feed.batch(self, step)
        return FreshBatch(**vars(batch), kept=self._train, part=share)

    def validation(self) -> Iterator[Batch]:
        """From the cache if all of it is there, else from the stream, to be kept."""
        parts = list(parts_of(self._scan(self._rank, self._world)))
        assert self._val is not None
        if self._val.usable([0]) and not self._val.there(parts):
            for part, batch in zip(parts, Feed.validation(self), strict=True):
                yield FreshBatch(**vars(batch), kept=self._val, part=part)
        else:
            yield from super().validation()

    def inputs(self, batch: Batch, depths: Collection[Depth]) -> dict[Depth, Tensor]:
        """As of a ReusingFeed; what is computed for a fresh batch is kept."""
        if not isinstance(batch, FreshBatch) or batch.kept is None:
            return super().inputs(batch, depths)
        taps = Feed.inputs(self, batch, {*depths, *self._dtypes})
        self._put(batch.kept, batch.part, batch, taps)
        return {depth: taps[depth] for depth in depths}

    def _shares_of(self, step: int) -> list[Part]:
        """This rank's share of each step to the end of the epoch; all at once costs little more than a single one."""
        steps = self._until - step
        found = self.task.plan.share(step, self._rank, self._world, steps)
        return list(zip(*(ids.reshape(steps, -1) for ids in found), strict=True))

    def _begin(self, step: int) -> None:
        """Choose for the steps of the next epoch."""
        self._until = min(self._end, step + math.ceil(self.task.plan.steps_per_epoch))
        self.total = self._until
        self._first, self._shares = step, self._shares_of(step)
        self._cached = self._train is not None and self._train.there(self._shares)
        self._next = step if self._cached else None


def feed_of(
    config: Config, task: Task, body: Body, ranks: Ranks, depth: Depth, total: int, storage: Store, start: str,
    clock: Clock, *, one_node: bool,
) -> Feed:  # fmt: skip  # all ranks
    """The feed of one fit: with what `train.reuse` keeps where that can be used again, else a plain one.

    Bytes can be used again whatever the views, and on any number of nodes.

    Args:
        body: of the fit, with its weights.
        depth: the deepest that the fit trains at.
        storage: the root of run.storage.
        start: what tells this start of the run from others.
        one_node: whether all ranks have the same cache; rows go to other ranks in other epochs.
    """
    if task.reader.augment is None and total > task.plan.steps(1) and one_node:
        cache = cache_of(config.cache, storage)
        for choice in _CHOICES[config.train.reuse]:
            if choice == "activations" and (depth in ("all", body.stages.num_stages) or task.device_views):
                continue  # nothing is frozen, or it says something else in every epoch
            identity, reuse = body.identities([depth]), Reuse(cache, start, {depth: choice})
            feed = FillingFeed(task, body.prefix, body.device, ranks, total, identity, reuse, clock)
            if all(ranks.gather(feed.usable)):
                return feed
            feed.close()
    if total > task.plan.steps(1):
        task = keeping_bytes(task, config)
    return Feed(task, body.prefix, body.device, ranks, total, clock)


def keeping_bytes(task: Task, config: Config) -> Task:
    """The task with the bytes of its images kept on each node that reads them, if `train.reuse` wants that."""
    reuse, cache = config.train.reuse, bytes_cache(config.cache)
    num_bytes = sum(pc.sum(table["length"]).as_py() or 0 for table in (task.table, task.validation))
    fits = num_bytes + len(task.table) + len(task.validation) <= cache.limit_bytes
    if reuse != "bytes" and not (reuse == "auto" and is_remote(task.reader.source) and fits):
        return task
    readers = {}
    for name, table in (("reader", task.table), ("scanner", task.validation)):
        keeper = Keeper.of(cache, table)
        if not keeper.open(table):  # which has been said
            break
        readers[name] = replace(getattr(task, name), keeper=keeper)
    return replace(task, **readers)
