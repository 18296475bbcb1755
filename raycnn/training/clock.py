"""Where the time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside to a phase."""
        with share([self], phase):
            yield

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


@contextmanager
def share(clocks: Sequence[Clock], phase: str) -> Iterator[None]:
    """Count the time inside to a phase of several clocks, an equal part to each."""
    start = time.perf_counter()
    try:
        yield
    finally:
        for clock in clocks:
            clock.seconds[phase] += (time.perf_counter() - start) / len(clocks)
