"""What an epoch's time went to, and one sentence on what limits it and what to change."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from raycnn.data.dataset import Batch
from raycnn.training.clock import Clock
from raycnn.training.reuse import KeptBatch

SHARES: Final = ("wait", "fetch", "decode", "cache", "transfer", "compute", "evaluate", "checkpoint", "ranks", "other")
"""wait: for the first batches, and for blocks that no task was reading. fetch, decode: for blocks while a task waited
for bytes, or decoded. cache: for what the node kept. transfer: of images to the device. ranks: for the others. other:
none of these."""

_EVERY_S: Final = 10.0
_WORTH_NAMING: Final = 0.2
_ADVICE: Final = {
    "wait": "it waits for Ray to start or place decoding tasks: leave CPUs free, or give longer epochs",
    "fetch": "it waits for bytes: raise data.fetch_threads, keep the bytes (train.reuse), or pack them (index --shard)",
    "decode": "it waits for decoding: give it more CPUs, or pack smaller images (index --shard)",
    "cache": "it reads from the node's cache: put cache.folder on a faster disk, or try train.reuse: none",
    "transfer": "it copies images to the device: lower data.image_size, or use a machine with a faster bus",
    "compute": "it computes: use more or faster devices, a lower precision, or a smaller depth",
    "evaluate": "it evaluates: raise train.eval_every",
    "checkpoint": "it waits for commits: raise train.checkpoint_every, or use a faster run.storage",
    "ranks": "the ranks wait for each other: use nodes of one kind, and leave CPUs free on each",
    "other": "it does what is not counted: see whether the machine is busy with something else",
}


class EpochTimes:
    """Collects one rank's times from one epoch to the next.

    Args:
        clock: of the loop.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._epoch = clock, _Epoch(dict(clock.seconds))
        self._due_at = 0.0

    def read(self, batch: Batch) -> None:
        """Note where a batch came from, and what its decoding task took for it."""
        epoch, waited = self._epoch, self._clock.seconds["data"]
        epoch.batches += 1
        if isinstance(batch, KeptBatch):
            epoch.cached += 1
            epoch.cache_s += waited - epoch.waited_s
        else:
            epoch.cached += batch.cached / max(1, len(batch.rows))
        epoch.waited_s = waited
        epoch.fetch_s += batch.fetch_s
        epoch.decode_s += batch.decode_s

    def due(self) -> bool:
        """Whether people should hear of this epoch; of short ones they hear now and then."""
        now = time.perf_counter()
        due = now >= self._due_at
        if due:
            self._due_at = now + _EVERY_S
        return due

    def close(self) -> dict[str, float]:
        """Seconds by SHARES since the last call; their sum is the time that passed. cached: share of the images."""
        found = self._epoch.found(self._clock.seconds)
        self._epoch = _Epoch(dict(self._clock.seconds))
        return found


@dataclass
class _Epoch:
    """What is counted from `before`, the clock's seconds by phase."""

    before: dict[str, float]
    start: float = field(default_factory=lambda: time.perf_counter())
    waited_s: float = 0.0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    cache_s: float = 0.0
    batches: int = 0
    cached: float = 0.0

    def __post_init__(self) -> None:
        self.waited_s = self.before.get("data", 0.0)

    def found(self, seconds: Mapping[str, float]) -> dict[str, float]:
        spent = {phase: total - self.before.get(phase, 0.0) for phase, total in seconds.items()}
        took = self.fetch_s + self.decode_s
        waited = spent.get("data", 0.0) - self.cache_s
        read = min(1.0, waited / took) if took else 0.0
        found = {
            "wait": max(0.0, waited - took),
            "fetch": self.fetch_s * read,
            "decode": self.decode_s * read,
            "cache": self.cache_s,
            "compute": spent.get("prefix", 0.0) + spent.get("compute", 0.0),
            **{phase: spent.get(phase, 0.0) for phase in ("transfer", "evaluate", "checkpoint", "ranks")},
        }
        found["other"] = max(0.0, time.perf_counter() - self.start - sum(found.values()))
        return {name: found[name] for name in SHARES} | {"cached": self.cached / max(1, self.batches)}


def verdict(of_ranks: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """The shares of the rank that the others wait for, and what limits it.

    Args:
        of_ranks: what EpochTimes gave on every rank.

    Returns:
        shares: {name: share of the time}; cached: share of all images that came from the cache; verdict: a sentence.
    """
    of_ranks = list(of_ranks)
    slowest = min(of_ranks, key=lambda seconds: seconds["ranks"])
    total = sum(slowest[name] for name in SHARES) or 1.0
    shares = {name: slowest[name] / total for name in SHARES}
    avoidable = max((name for name in SHARES if name != "compute"), key=lambda name: shares[name])
    limit = avoidable if shares[avoidable] >= min(_WORTH_NAMING, shares["compute"]) else "compute"
    return {
        "shares": {name: round(share, 3) for name, share in shares.items()},
        "cached": round(sum(each["cached"] for each in of_ranks) / len(of_ranks), 3),
        "verdict": f"{shares[limit]:.0%} of the time {_ADVICE[limit]}",
    }


def sentence(epoch: int, found: Mapping[str, Any]) -> str:
    """The line that people read."""
    parts = ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items() if share >= 0.005)
    cached = f", {found['cached']:.0%} of the images from the cache" if found["cached"] else ""
    return f"epoch {epoch}: {parts}{cached}; {found['verdict']}"
