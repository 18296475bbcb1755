"""What the ranks of a worker group agree on. Every function here is called by all ranks at the same point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raycnn.errors import RaycnnError

T = TypeVar("T")


@dataclass(frozen=True)
class Agreement:
    """Sums over all ranks at the start of a step."""

    count: float
    leaving: bool
    failed: bool
    bad_rows: bool


class Ranks:
    """The ranks' control channel: a gloo group on CPUs, so that agreeing never waits for a GPU."""

    def __init__(self) -> None:
        met = dist.is_initialized()
        self.rank = dist.get_rank() if met else 0
        self.world = dist.get_world_size() if met else 1
        self._group: Any = dist.new_group(backend="gloo") if self.world > 1 else None

    def agree(self, count: int, *, leaving: bool, failed: bool, bad_rows: int) -> Agreement:  # all ranks
        """Valid rows of the global batch, and whether any rank wants to leave, failed, or met unreadable rows."""
        values = self.sum([count, leaving, failed, bad_rows])
        return Agreement(values[0], values[1] > 0, values[2] > 0, values[3] > 0)

    def sum(self, values: list[float]) -> list[float]:  # all ranks
        """Element-wise sums over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(tensor, group=self._group)
        return [float(value) for value in tensor]

    def gather(self, value: T) -> list[T]:  # all ranks
        """Every rank's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def swap(self, mine: Tensor, partner: int) -> Tensor:  # both ranks
        """The tensor of the same shape that the partner has for this one; from device to device, not over gloo."""
        theirs = torch.empty_like(mine)
        operations = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        return theirs

    def add(self, mine: Tensor) -> None:  # all ranks
        """Put the sum over all ranks in the tensor's place; from device to device, not over gloo."""
        if self.world > 1:
            dist.all_reduce(mine)

    def from_first(self, value: T | RaycnnError | None) -> T:  # all ranks
        """Rank 0's value, or its RaycnnError, raised on every rank."""
        box: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, group=self._group)
        if isinstance(box[0], RaycnnError):
            raise box[0]
        return box[0]  # type: ignore[no-any-return]

    def raise_first(self, error: RaycnnError | None) -> None:  # all ranks
        """Raise the error of the lowest rank that has one, on every rank."""
        for found in self.gather(error):
            if found is not None:
                raise found
