"""Runs inside the workers of a Ray under test: writes down what they train, and obeys orders at exact steps.

Below $RAYCNN_FAULTS/RUN/ lie history/PID.jsonl, one line for each thing that happened, and orders/NAME.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

ROOT = "RAYCNN_FAULTS"


class Scribe:
    """One process's part of a run's history."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.epoch = -1
        self.rows: list[int] = []

    def open(self, run: str) -> None:
        """Write below the folder of a run from now on; nowhere without $RAYCNN_FAULTS."""
        root = os.environ.get(ROOT)
        self.folder = Path(root, run) if root else None
        if self.folder:
            (self.folder / "history").mkdir(parents=True, exist_ok=True)

    def note(self, kind: str, **facts: Any) -> None:
        """One line; it is in the kernel's hands when this returns, so kill -9 does not take it back."""
        if self.folder:
            line = json.dumps({"kind": kind, "epoch": self.epoch, "time": time.time(), **facts}) + "\n"
            with (self.folder / "history" / f"{os.getpid()}.jsonl").open("a") as file:
                file.write(line)

    def obey(self, at: str, step: int, rank: int) -> str | None:
        """Do what is ordered for a rank that is about to train a step, or commit it; or what the caller has to do."""
        for path in sorted((self.folder / "orders").glob("*.json")) if self.folder else []:
            with contextlib.suppress(FileNotFoundError):  # another rank's, just done
                order = json.loads(path.read_text())
                if (order["at"], order["step"], order["rank"]) == (at, step, rank):
                    if order["once"]:
                        path.rename(path.with_suffix(".done"))
                    self.note("fault", fault=order["fault"], step=step, rank=rank)
                    return self._do(order["fault"], path.with_suffix(".done"))
        return None

    def _do(self, fault: str, done: Path) -> str | None:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "pause":  # until the order is taken away
            while done.exists():
                time.sleep(0.01)
        else:
            return fault
        return None


def watch() -> None:
    """Wrap what trains and commits."""
    from raycnn.training.feed import Feed
    from raycnn.training.member import Member
    from raycnn.training.ranks import Ranks
    from raycnn.training.recorder import Run
    from raycnn.training.worker import Start

    scribe = Scribe()
    batch, step, commit, from_first = Feed.batch, Member.step, Run.commit, Ranks.from_first
    begin = Start.__init__

    def watched_from_first(ranks: Ranks, value: Any) -> Any:
        found = from_first(ranks, value)
        scribe.epoch = found[0].epoch
        return found

    def watched_begin(start: Start, *args: Any) -> None:
        begin(start, *args)
        scribe.open(start.member.config.run.name)
        world = start.feed._world
        scribe.note("start", step=start.commit.step, rank=start.feed._rank, world=world, pid=os.getpid())

    def watched_batch(feed: Feed, number: int) -> Any:
        found = batch(feed, number)
        scribe.rows = found.rows.tolist()
        return found

    def watched_step(member: Member, inputs: Any, targets: Any, valid: Any, count: float, ranks: Ranks) -> None:
        number = member.state.step
        if scribe.obey("step", number, ranks.rank) == "nan":
            inputs = inputs * float("nan")
        step(member, inputs, targets, valid, count, ranks)
        scribe.note("step", step=number, rank=ranks.rank, world=ranks.world, rows=scribe.rows)

    def watched_commit(run: Run, state: Any, *rest: Any, **named: Any) -> Any:
        scribe.note("commit begins", step=state.step)
        scribe.obey("commit", state.step, 0)
        found = commit(run, state, *rest, **named)
        scribe.note("commit ends", step=state.step)
        return found

    Ranks.from_first, Start.__init__, Feed.batch = watched_from_first, watched_begin, watched_batch  # type: ignore[method-assign]
    Member.step, Run.commit = watched_step, watched_commit  # type: ignore[method-assign]
