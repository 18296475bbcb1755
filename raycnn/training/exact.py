"""Sums of gradients whose bits do not depend on the number of ranks.

The global batch is cut into V virtual shards of equal size, of which rank r of W has the r-th V / W. Each shard is a
pass of its own, so that every pass has the same shape. Their gradients are summed in one binary tree over neighbours,
((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)): a rank's shards are a whole branch of it, and the levels above are swaps
between ranks that each add what the other has, since a + b and b + a are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from raycnn.training.device import memory_format

BUCKET_ELEMENTS: Final = 1 << 22
"""Elements that travel at once, 16 MB of float32; a larger tensor travels alone."""


class Swapping(Protocol):
    """What of `Ranks` the tree needs."""

    rank: int
    world: int

    def swap(self, mine: Tensor, partner: int) -> Tensor:
        """The partner's tensor for one's own."""


def shards(inputs: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """The inputs in pieces of `rows`: the place of each, and a copy of it.

    A copy, because kernels may round in another way where memory is aligned in another way.
    """
    if len(inputs) % rows:
        raise ValueError(f"{len(inputs)} rows are no whole number of shards of {rows}")
    for start in range(0, len(inputs), rows):
        place = slice(start, start + rows)
        yield place, inputs[place].clone(memory_format=memory_format(inputs))


def tree_sum(branches: Iterable[list[Tensor]]) -> list[Tensor]:
    """Element-wise sums of 2^k lists of tensors in the tree; overwrites them, and holds at most k + 1 at once."""
    pending: list[list[Tensor]] = []
    for number, branch in enumerate(branches, 1):
        while number % 2 == 0:
            left = pending.pop()
            torch._foreach_add_(left, branch)
            branch, number = left, number // 2
        pending.append(branch)
    (total,) = pending
    return total


def add_ranks(values: Sequence[Tensor], ranks: Swapping) -> None:  # all ranks
    """Add up the ranks' values in the tree, in place; the number of ranks is a power of two."""

    def add(flat: Tensor) -> None:
        distance = 1
        while distance < ranks.world:
            flat += ranks.swap(flat, ranks.rank ^ distance)
            distance *= 2

    in_buckets(values, add)


def in_buckets(values: Sequence[Tensor], work: Callable[[Tensor], None]) -> None:
    """Have `work` change many values at once, in place: it is given them as few flat tensors."""
    for bucket in _buckets(values):
        flat = torch.cat([value.flatten() for value in bucket])
        work(flat)
        parts = torch.split(flat, [value.numel() for value in bucket])
        torch._foreach_copy_(bucket, [part.view(value.shape) for part, value in zip(parts, bucket, strict=True)])


def _buckets(values: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for value in values:
        if bucket and sum(each.numel() for each in bucket) + value.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(value)
    if bucket:
        yield bucket
