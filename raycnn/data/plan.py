"""What every rank trains on at every step: arithmetic over a pinned manifest, without Ray, torch or state.

Training reads one endless sequence, the epoch permutations end to end. Step s takes positions [s G, (s + 1) G) and
rank r of W its r-th share of them, so batches are always full, an epoch may end inside one, and another world size
sees the same rows in the same step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raycnn.data.keyed import derive_seed, mix64, permute

Int64s = npt.NDArray[np.int64]
_EPSILON = 1e-9


@dataclass(frozen=True)
class Plan:
    """The order of training.

    >>> plan = Plan(num_rows=10, global_batch=4, seed=0)
    >>> rows, epochs = plan.share(step=2, rank=0, world=2)   # 2 rows, both of them in epoch 0
    """

    num_rows: int
    global_batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> float:
        """Steps per epoch; not whole in general."""
        return self.num_rows / self.global_batch

    def steps(self, epochs: float) -> int:
        """Steps after which at least `epochs` passes over the rows are complete."""
        return math.ceil(epochs * self.num_rows / self.global_batch - _EPSILON)

    def epochs(self, step: int) -> float:
        """Passes over the rows that are complete before `step`."""
        return step * self.global_batch / self.num_rows

    def share(self, step: int, rank: int = 0, world: int = 1, steps: int = 1) -> tuple[Int64s, Int64s]:
        """Rows of one rank in steps [step, step + steps), and the epoch each belongs to.

        Returns:
            (rows, epochs), both int64[steps * global_batch / world], in the order of training.
        """
        each = self.global_batch // world
        starts = (np.arange(step, step + steps, dtype=np.int64) * self.global_batch + rank * each)[:, None]
        positions = (starts + np.arange(each, dtype=np.int64)[None, :]).ravel()
        epochs, offsets = np.divmod(positions, self.num_rows)
        keys = mix64(np.array([derive_seed(self.seed, "order")], np.uint64) + epochs.astype(np.uint64))
        return permute(offsets, self.num_rows, keys), epochs
