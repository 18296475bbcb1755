"""What happened to a run: every step as trained, every commit, every fault; and the orders that cause faults.

The workers write it themselves (`inside.py`), one file per process; a test adds the faults that come from outside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycnn.errors import CheckpointError
from raycnn.storage import Store
from raycnn.storage.lease import read_lease
from raycnn.training import checkpoint
from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Step:
    """Rows that one rank trained in one step under one lease epoch; -1 where an image could not be read."""

    epoch: int
    step: int
    rank: int
    world: int
    rows: tuple[int, ...]
    time: float


@dataclass(frozen=True)
class Start:
    """A rank of the worker group of a lease epoch, restored to a step."""

    epoch: int
    step: int
    rank: int
    time: float


@dataclass(frozen=True)
class Fault:
    """Something broken on purpose; `announced`: the run was asked to leave."""

    name: str
    time: float
    announced: bool = False


@dataclass(frozen=True)
class Writing:
    """A commit as its writer did it; `ended` is None if it never did."""

    epoch: int
    step: int
    began: float
    ended: float | None


@dataclass(frozen=True)
class Stored:
    """A commit as the store has it: whether every file verifies."""

    step: int
    epoch: int
    intact: bool


@dataclass(frozen=True)
class History:
    """All of it, and what the lease says of the epochs."""

    steps: tuple[Step, ...] = ()
    starts: tuple[Start, ...] = ()
    faults: tuple[Fault, ...] = ()
    writings: tuple[Writing, ...] = ()
    stored: tuple[Stored, ...] = ()
    bases: dict[int, int] | None = None
    """By lease epoch: the step that it went on from."""

    def ended(self, epoch: int) -> int:
        """Steps that the ranks of an epoch had done when it ended; -1 if it did none."""
        return max((each.step + 1 for each in self.steps if each.epoch == epoch), default=-1)


class Faults:
    """A run's folder below $RAYCNN_FAULTS, from outside."""

    def __init__(self, root: Path, run: str) -> None:
        self.folder = root / run
        for name in ("history", "orders"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def order(self, fault: str, step: int, rank: int = 0, *, at: str = "step", once: bool = True) -> Path:
        """Let a rank suffer a fault (kill, stop, nan, pause) when it is about to train a step, or to commit it."""
        path = self.folder / "orders" / f"{at}-{step:06d}-{rank}-{fault}.json"
        written = path.with_suffix(".new")
        written.write_text(json.dumps({"fault": fault, "at": at, "step": step, "rank": rank, "once": once}))
        written.rename(path)
        return path

    @contextmanager
    def paused(self, step: int, rank: int = 0, *, at: str = "step", timeout_s: float = 120) -> Iterator[None]:
        """Inside, a rank stands before a step or a commit; enter before it gets there."""
        done = self.order("pause", step, rank, at=at).with_suffix(".done")
        wait_for(done.exists, f"step {step} of {self.folder.name}", timeout_s)
        try:
            yield
        finally:
            done.unlink()

    def caused(self, name: str, *, announced: bool = False) -> None:
        """Note a fault that came from outside."""
        line = {"kind": "fault", "fault": name, "time": time.time(), "announced": announced}
        with (self.folder / "history" / "outside.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """All that was noted so far, in order of time."""
        texts = [path.read_text() for path in (self.folder / "history").iterdir()]
        found = [json.loads(line) for text in texts for line in text.splitlines() if line.endswith("}")]
        return sorted(found, key=lambda line: line["time"])

    def progress(self) -> int:
        """Steps done so far by the rank that is furthest."""
        return max((line["step"] + 1 for line in self.lines() if line["kind"] == "step"), default=0)

    def history(self, store: Store) -> History:
        """Everything, with the commits that lie in the run's store (keep them all: train.keep)."""
        lines = self.lines()
        of = {kind: [line for line in lines if line["kind"] == kind] for kind in ("step", "start", "fault")}
        return History(
            tuple(
                Step(each["epoch"], each["step"], each["rank"], each["world"], tuple(each["rows"]), each["time"])
                for each in of["step"]
            ),
            tuple(Start(each["epoch"], each["step"], each["rank"], each["time"]) for each in of["start"]),
            tuple(
                Fault(each["fault"], each["time"], each.get("announced", False))
                for each in of["fault"]
                if each["fault"] != "pause"
            ),
            _writings(lines),
            tuple(Stored(each.step, each.epoch, _verifies(store, each)) for each in checkpoint.commits(store, None)),
            read_lease(store).bases,
        )


def _writings(lines: list[dict[str, Any]]) -> tuple[Writing, ...]:
    ended = {(each["epoch"], each["step"]): each["time"] for each in lines if each["kind"] == "commit ends"}
    begun = [each for each in lines if each["kind"] == "commit begins"]
    return tuple(
        Writing(each["epoch"], each["step"], each["time"], ended.get((each["epoch"], each["step"]))) for each in begun
    )


def _verifies(store: Store, commit: checkpoint.Commit) -> bool:
    try:
        checkpoint.verified(store, commit)
    except CheckpointError:
        return False
    return True
