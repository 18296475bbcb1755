"""Where the time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by phase; what passes in a phase inside of another counts to the inner one alone."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inside: list[float] = field(default_factory=list)  # of each phase that is open, what went to others inside of it

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time inside to a phase."""
        with share([self], phase):
            yield

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    def _open(self) -> None:
        self._inside.append(0.0)

    def _close(self, phase: str, seconds: float) -> None:
        self.seconds[phase] += seconds - self._inside.pop()
        if self._inside:
            self._inside[-1] += seconds


@contextmanager
def share(clocks: Sequence[Clock], phase: str) -> Iterator[None]:
    """Count the time inside to a phase of several clocks, an equal part to each."""
    start = time.perf_counter()
    for clock in clocks:
        clock._open()
    try:
        yield
    finally:
        seconds = (time.perf_counter() - start) / len(clocks)
        for clock in clocks:
            clock._close(phase, seconds)
