"""How many rows go through what trains at once: as many as are asked for, or as memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from raycnn.errors import ConfigError

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Agreeing(Protocol):
    """What of `Ranks` this needs."""

    def sum(self, values: list[float]) -> list[float]:  # all ranks
        """Element-wise sums over all ranks."""


class MicroBatch:
    """The most rows of one pass, the same on every rank.

    Args:
        setting: train.micro_batch.

    Attributes:
        rows: at most so many; None: all at once.
    """

    def __init__(self, setting: Any) -> None:
        self.automatic = setting == "auto"
        self.rows: int | None = None if self.automatic else setting

    def pieces(self, num_rows: int) -> list[slice]:
        """Which rows go through together; as many each as can be, so that shapes are few."""
        count = -(-num_rows // min(self.rows or num_rows, num_rows))
        each, longer = divmod(num_rows, count)
        starts = [number * each + min(number, longer) for number in range(count + 1)]
        return [slice(start, stop) for start, stop in pairwise(starts)]

    def fit(
        self, work: Callable[[], T], num_rows: int, undo: Callable[[], None], ranks: Agreeing, step: int
    ) -> T:  # all ranks
        """work(), again with half as many rows a pass for as long as it runs out of memory on any rank.

        Args:
            work: a rank's own passes; it must not wait for other ranks.
            num_rows: the rows of one pass if there is no limit.
            undo: drops what an attempt has left.
            ranks: that take part.
            step: to be named.

        Raises:
            ConfigError: not even one row fits.
        """
        while True:
            found = _attempt(work)
            if not ranks.sum([found is None])[0]:
                assert found is not None
                return found[0]
            found = None
            undo()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            before = min(self.rows or num_rows, num_rows)
            if before == 1:
                fix = "unfreeze less, or use a smaller data.image_size or network"
                raise ConfigError(f"out of memory at step {step} with one row a pass", where="train", fix=fix)
            self.rows = before // 2
            _log.warning(
                "out of memory at step %d: %d rows a pass from now on, in place of %d", step, self.rows, before
            )


def keep(tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Puts them back to what they are now."""
    kept = [each.clone() for each in tensors]

    def back() -> None:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.copy_(value)

    return back


def _attempt(work: Callable[[], T]) -> tuple[T] | None:
    """What it gives; None if memory ran out, of which nothing is held on to any more."""
    try:
        return (work(),)
    except torch.OutOfMemoryError:
        return None
