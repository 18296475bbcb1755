"""What every rank trains on at every step: arithmetic over a pinned manifest, without Ray, torch or state.

Training reads one endless sequence, the epoch permutations end to end. Step s takes positions [s G, (s + 1) G) and
rank r of W its r-th share of them, so batches are always full, an epoch may end inside one, and another world size
sees the same rows in the same step.

Three things bend the sequence without adding state. Neighbours: an epoch's permutation is over groups of rows that lie
one after the other in the source; where the groups begin changes with the epoch. Resampling: it is over draws, of which
each class has a fixed number; the n-th draw of a class takes the n-th row of its own endless sequence of permutations.
Repeated views: a step has G / V places of the sequence, and each stands in it V times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.config import Config
from raycnn.data.keyed import derive_seed, mix64, permute
from raycnn.errors import DataError

Int64s = npt.NDArray[np.int64]
_EPSILON = 1e-9


@dataclass(frozen=True)
class Plan:
    """The order of training.

    >>> plan = Plan(num_rows=10, global_batch=4, seed=0)
    >>> rows, views = plan.share(step=2, rank=0, world=2)   # 2 rows, both of them in epoch 0

    Args:
        num_rows: of the table.
        global_batch: places of a step.
        seed: of the order.
        views: places of a step that show the same row.
        quotas: (rows, draws an epoch) of each class, in the order of the table, whose draws add up to num_rows; empty:
            each row once an epoch.
        lying: int64[num_rows], the rows in the order in which they lie in the source; None: the table's.
        neighbours: rows of a group.
    """

    num_rows: int
    global_batch: int
    seed: int
    views: int = 1
    quotas: tuple[tuple[int, int], ...] = ()
    neighbours: int = 1
    lying: Int64s | None = field(default=None, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> float:
        """Steps per epoch; not whole in general."""
        return self.num_rows * self.views / self.global_batch

    def steps(self, epochs: float) -> int:
        """Steps after which at least `epochs` passes over the rows are complete."""
        return math.ceil(epochs * self.num_rows * self.views / self.global_batch - _EPSILON)

    def epochs(self, step: int) -> float:
        """Passes over the rows that are complete before `step`."""
        return step * self.global_batch / (self.num_rows * self.views)

    def share(self, step: int, rank: int = 0, world: int = 1, steps: int = 1) -> tuple[Int64s, Int64s]:
        """Rows of one rank in steps [step, step + steps), and which view of its row each is.

        Returns:
            (rows, views), both int64[steps * global_batch / world], in the order of training. A row's views are
            0, 1, ...: those of its epochs, or of its class's where draws are resampled, and never the same one twice.
        """
        each, distinct = self.global_batch // world, self.global_batch // self.views
        starts = np.arange(step, step + steps, dtype=np.int64)[:, None] * distinct
        views, places = np.divmod(np.arange(rank * each, (rank + 1) * each, dtype=np.int64), distinct)
        epochs, offsets = np.divmod((starts + places[None, :]).ravel(), self.num_rows)
        keys = self._keys("order", epochs)
        rows = permute(offsets, self.num_rows, keys) if self.neighbours == 1 else self._grouped(offsets, keys)
        if self.quotas:
            rows, epochs = self._resampled(rows, epochs)
        return rows, epochs * self.views + np.tile(views, steps)

    def _grouped(self, offsets: Int64s, keys: npt.NDArray[np.uint64]) -> Int64s:
        """The rows of an epoch: whole groups at random, and last the rows that are too few for one."""
        groups, places = np.divmod(offsets, self.neighbours)
        whole = groups < self.num_rows // self.neighbours
        groups[whole] = permute(groups[whole], self.num_rows // self.neighbours, keys[whole])
        turns = (mix64(keys) % np.uint64(self.num_rows)).astype(np.int64)
        lies = (groups * self.neighbours + places + turns) % self.num_rows
        return lies if self.lying is None else self.lying[lies]

    def _resampled(self, draws: Int64s, epochs: Int64s) -> tuple[Int64s, Int64s]:
        """The rows of an epoch's draws, and how often each came before."""
        sizes, quotas = np.array(self.quotas, np.int64).T
        classes = np.searchsorted(np.cumsum(quotas), draws, side="right")
        numbers = epochs * quotas[classes] + draws - (np.cumsum(quotas) - quotas)[classes]
        cycles, offsets = np.divmod(numbers, sizes[classes])
        keys = mix64(self._keys("class", classes) + cycles.astype(np.uint64))
        return permute(offsets, sizes[classes], keys) + (np.cumsum(sizes) - sizes)[classes], cycles

    def _keys(self, name: str, numbers: Int64s) -> npt.NDArray[np.uint64]:
        return mix64(np.array([derive_seed(self.seed, name)], np.uint64) + numbers.astype(np.uint64))


def plan_of(config: Config, table: pa.Table) -> Plan:
    """The plan that a config trains on.

    Args:
        config: of the run.
        table: the training rows, sorted by label.

    Raises:
        DataError: data.resample, and labels that are no classes.
    """
    quotas: tuple[tuple[int, int], ...] = ()
    if config.data.resample != "none":
        labels, counts = np.unique(table["label"].to_numpy(), return_counts=True)
        if (labels < 0).any():
            fix = "leave it out, or give one class per image"
            raise DataError("only images of one class each can be resampled", where="data.resample", fix=fix)
        quotas = tuple(zip(counts.tolist(), draws_per_epoch(counts, config.data.resample).tolist(), strict=True))
    seed, neighbours = derive_seed(config.train.seed, "data"), config.data.neighbours
    places = lying(table) if neighbours > 1 else None
    return Plan(len(table), config.train.global_batch, seed, config.augment.views, quotas, neighbours, places)


def lying(table: pa.Table) -> Int64s:
    """The rows of a table in the order in which they lie in the source, int64[rows]."""
    order = pc.sort_indices(table, [("key", "ascending"), ("offset", "ascending")])
    return np.asarray(order.to_numpy(), np.int64)


def draws_per_epoch(counts_K: Int64s, kind: Literal["none", "balanced", "sqrt"]) -> Int64s:
    """Draws of each class in an epoch, int64[K], as many in all as there are rows.

    Args:
        counts_K: rows of each class; one without rows gets no draws.
        kind: none: its rows; balanced: the same for all; sqrt: by the square root of its rows. What is left by
            rounding goes to the largest remainders.
    """
    exponent = {"none": 1.0, "sqrt": 0.5, "balanced": 0.0}[kind]
    weights = np.where(counts_K > 0, np.maximum(counts_K, 1.0) ** exponent, 0.0)
    exact = counts_K.sum() * weights / max(weights.sum(), 1.0)
    draws = np.floor(exact + _EPSILON).astype(np.int64)
    left = int(counts_K.sum() - draws.sum())
    draws[np.argsort(draws - exact, kind="stable")[:left]] += 1
    return np.asarray(draws, np.int64)
