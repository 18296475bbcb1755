"""The faults that raycnn is held against, what is expected of each, and the table of what was seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SCENARIOS: Final = {
    "worker kill -9": "at most checkpoint_every steps again, same bits",
    "worker hangs": "the same, in seconds",
    "node lost": "goes on with the rest, or waits and says so",
    "driver or head lost": "the job ends; the same command continues it",
    "S3 errors, resets, stalls": "backoff with jitter under a deadline; training goes on",
    "S3 down past the deadline": "code 5, the last commit intact",
    "acknowledgement lost on commit": "412 with the same content is success",
    "body truncated, short or flipped": "retried, then quarantined (data) or the checkpoint before (state)",
    "object changed or gone in mid-run": "typed, counted against the budget",
    "odd and broken images": "converted or quarantined by rule",
    "decompression bomb": "refused from its header, no allocation",
    "disk full": "code 5 with path and bytes, the last commit intact",
    "same step kills it again and again": "code 8 after three attempts without a new commit",
    "NaN or Inf": "code 4 with step, lr and images; nothing poisoned is committed",
    "SIGTERM, spot notice": "the step is finished and committed, code 75",
    "two jobs, one name": "code 6 within 5 s, or an expired lease is taken over",
    "clock skew": "the store's refusal says: set the clock",
    "half-written checkpoint": "not valid, ignored, later removed",
    "other world size, other config": "same rows per step; else code 2 or 7 with the difference",
    "checkpoints deleted": "one: the one before; all: code 7",
    "labels renamed, added, reordered": "code 7 with the difference",
    "empty, one-class, tiny data": "code 3 before any worker starts",
    "search driver killed": "finished trials kept, running ones resume, none twice",
    "predict or export interrupted": "visible only when complete; predict continues",
    "network cut": "no double training, no double commit",
    "format of another version": "older loads, newer ends with code 7",
}
"""By name: what is expected."""


@dataclass
class Seen:
    """What one test saw of a scenario; it fills in what applies."""

    scenario: str
    case: str
    what: str = "as expected"
    steps_lost: int | None = None
    recovery_s: float | None = None
    passed: bool = False


@dataclass
class Table:
    """What was seen of every scenario in one run of the tests."""

    rows: list[Seen] = field(default_factory=list)

    def lines(self) -> list[str]:
        """As Markdown, in the order of SCENARIOS."""
        order = list(SCENARIOS)
        head = ["| scenario | case | expected | seen | steps lost | s to recover |", "|---|---|---|---|---|---|"]
        return head + [_line(row) for row in sorted(self.rows, key=lambda row: (order.index(row.scenario), row.case))]


def _line(row: Seen) -> str:
    lost = "-" if row.steps_lost is None else str(row.steps_lost)
    recovery = "-" if row.recovery_s is None else f"{row.recovery_s:.1f}"
    seen = row.what if row.passed else "FAILED"
    return "| " + " | ".join((row.scenario, row.case, SCENARIOS[row.scenario], seen, lost, recovery)) + " |"
