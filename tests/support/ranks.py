"""Several ranks in one process, as threads that take turns."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from threading import Lock
from typing import Any

from torch import Tensor


@dataclass
class Simulated:
    """One of several ranks in one process; only one of them computes at a time."""

    rank: int
    world: int
    turn: Lock
    boxes: dict[tuple[int, int], Queue[Tensor]]

    def swap(self, mine: Tensor, partner: int) -> Tensor:
        self.boxes[self.rank, partner].put(mine.clone())
        self.turn.release()
        theirs = self.boxes[partner, self.rank].get(timeout=60)
        self.turn.acquire()
        return theirs


def on_ranks(world: int, work: Callable[[Simulated], Any]) -> list[Any]:
    """What `work` returns on each of so many ranks."""
    turn = Lock()
    boxes: dict[tuple[int, int], Queue[Tensor]] = {(a, b): Queue() for a in range(world) for b in range(world)}

    def run(rank: int) -> Any:
        with turn:
            return work(Simulated(rank, world, turn, boxes))

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))
