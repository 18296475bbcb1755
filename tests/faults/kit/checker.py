"""Whether a recorded history keeps the promises: a pure function of each promise, that gives back what breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from raycnn.data.plan import Plan
from tests.faults.kit.history import Fault, History, Start, Step, Stored, Writing

RECOVERY_S = 60.0
BUSY_S = 5.0


def steps_lost(history: History, start: Start) -> int:
    """Steps that this start of a worker group makes the group do again."""
    before = [history.ended(epoch) for epoch in {each.epoch for each in history.steps} if epoch < start.epoch]
    return max(0, max(before, default=0) - start.step)


def redone(history: History, checkpoint_every: int) -> list[str]:
    """P1: after a fault at most `checkpoint_every` steps and those run during one commit; announced: at most one."""
    broken = []
    for start in _groups(history):
        fault = _last_fault(history, start.time)
        lost, allowed = steps_lost(history, start), checkpoint_every
        if fault and fault.announced:
            allowed = 1
        else:
            allowed += _run_during_commit(history, start)
        if lost > allowed:
            broken.append(f"P1: epoch {start.epoch} redoes {lost} steps, allowed are {allowed}")
    flights = sorted((each for each in history.writings), key=lambda each: each.began)
    for one, other in pairwise(flights):
        if one.epoch == other.epoch and (one.ended is None or one.ended > other.began):
            broken.append(f"P1: commits {one.step} and {other.step} of epoch {one.epoch} were in flight at once")
    return broken


def recoveries(history: History) -> list[float]:
    """Seconds from each fault to the next step that nobody had done before; the last ones may have none.

    Steps that the group still did after it was hit do not count; only a fault that no group started after has them.
    """
    found = []
    for fault in history.faults:
        group = min((start.epoch for start in history.starts if start.time > fault.time), default=-1)
        done = max((each.step for each in history.steps if each.time <= fault.time or each.epoch < group), default=-1)
        new = [e.time for e in history.steps if e.step > done and e.time > fault.time and e.epoch >= group]
        if new:
            found.append(min(new) - fault.time)
    return found


def percentile_95(seconds: Sequence[float]) -> float:
    """The smallest value that at least 95 of 100 do not exceed."""
    return sorted(seconds)[-(-len(seconds) * 95 // 100) - 1]


def slow(seconds: Sequence[float]) -> list[str]:
    """P2: RECOVERY_S at the 95th percentile."""
    if not seconds or percentile_95(seconds) <= RECOVERY_S:
        return []
    return [f"P2: {percentile_95(seconds):.1f} s to recover at the 95th percentile of {len(seconds)}"]


def other_bits(final: Mapping[str, Any], undisturbed: Mapping[str, Any]) -> list[str]:
    """P3: weights, optimizer and metrics are those of the undisturbed run."""
    return [f"P3: {name} differs" for name in undisturbed if final.get(name) != undisturbed[name]]


def other_rows(history: History, plan: Plan) -> list[str]:
    """P4: in every step, the ranks of a group together train the plan's rows, whatever their number."""
    broken = []
    for epoch, step in sorted({(each.epoch, each.step) for each in history.steps}):
        for each in (each for each in history.steps if (each.epoch, each.step) == (epoch, step)):
            share = plan.share(step)[0][each.rank * len(each.rows) : (each.rank + 1) * len(each.rows)].tolist()
            if len(each.rows) * each.world != plan.global_batch or not _is_share(each.rows, share):
                broken.append(f"P4: epoch {epoch}, step {step}, rank {each.rank}: not the plan's rows")
    return broken


def lineage(history: History) -> list[Step]:
    """What the newest commit has seen: the steps of its epoch since its base, of the base's epoch before it, ..."""
    believed = [each for each in history.stored if _believed(history, each)]
    tip = max(believed, key=lambda each: (each.step, each.epoch))
    found: list[Step] = []
    while tip.step > 0:
        base = (history.bases or {})[tip.epoch]
        found += [each for each in history.steps if each.epoch == tip.epoch and base <= each.step < tip.step]
        before = [each for each in believed if each.step == base and each.epoch < tip.epoch]
        if not before:
            break
        tip = max(before, key=lambda each: each.epoch)
    return sorted(found, key=lambda each: (each.step, each.rank))


def uneven(history: History, num_rows: int, bad: Collection[int] = ()) -> list[str]:
    """P5: along the lineage of the newest commit, every good row exactly once per epoch; needs no plan."""
    flat = [row for each in lineage(history) for row in each.rows]
    broken = []
    for first in range(0, len(flat), num_rows):
        seen = Counter(flat[first : first + num_rows])
        missing = seen.pop(-1, 0)
        twice = [row for row, times in seen.items() if times > 1]
        whole = len(flat[first : first + num_rows]) == num_rows
        if twice or (whole and (missing > len(bad) or len(seen) + missing != num_rows)):
            broken.append(f"P5: epoch {first // num_rows}: {len(twice)} rows twice, {num_rows - len(seen)} missing")
    steps = sorted({each.step for each in lineage(history)})
    tip = max((each.step for each in history.stored if _believed(history, each)), default=0)
    if steps != list(range(tip)):
        broken.append(f"P5: the newest commit is of step {tip}, and {tip - len(steps)} steps were never trained")
    return broken


def invalid(history: History, samples: Sequence[bool] = ()) -> list[str]:
    """P6: what may be believed verifies; once a look found a valid checkpoint (`samples`), every later one does."""
    broken = [f"P6: commit {each.step}.e{each.epoch} is broken" for each in history.stored if not each.intact]
    if any(earlier and not later for earlier, later in pairwise(samples)):
        broken.append("P6: there was a moment without a valid checkpoint")
    return broken


def two_writers(history: History, refused_s: Sequence[float] = ()) -> list[str]:
    """P7: every group goes on from its base, which is a commit that counts; a second job is refused in time."""
    broken = [f"P7: a second job was refused after {took:.1f} s" for took in refused_s if took > BUSY_S]
    bases = history.bases or {}
    for start in _groups(history):
        if start.step != bases.get(start.epoch):
            broken.append(f"P7: epoch {start.epoch} starts from step {start.step}, not from its base")
        earlier = [each for each in history.stored if each.step == start.step and each.epoch < start.epoch]
        if start.step > 0 and not any(_believed(history, each, start.epoch) for each in earlier):
            broken.append(f"P7: epoch {start.epoch} starts from step {start.step}, which nobody committed")
    begun = {each.epoch: each.time for each in reversed(_groups(history))}
    for each in history.writings:
        fenced = [epoch for epoch, at in begun.items() if epoch > each.epoch and each.ended and at < each.began]
        if fenced:
            broken.append(f"P7: epoch {each.epoch} commits step {each.step} after epoch {min(fenced)} has begun")
    return broken


def trained_on_bad(history: History, bad: Mapping[int, str], recorded: Collection[int]) -> list[str]:
    """P8: no bad row is ever trained on, and the checkpoint records exactly those that were met."""
    trained = {row for each in history.steps for row in each.rows}
    broken = [f"P8: row {row} ({bad[row]}) was trained on" for row in sorted(trained & bad.keys())]
    return broken + [f"P8: row {row} is good, and recorded as bad" for row in sorted(set(recorded) - bad.keys())]


def check(history: History, plan: Plan, checkpoint_every: int) -> list[str]:
    """All that a history alone can show: P1, P4 to P7."""
    return [
        *redone(history, checkpoint_every),
        *other_rows(history, plan),
        *uneven(history, plan.num_rows),
        *invalid(history),
        *two_writers(history),
    ]


def _groups(history: History) -> list[Start]:
    """The first rank to start, of every group."""
    first: dict[int, Start] = {}
    for start in history.starts:
        first.setdefault(start.epoch, start)
    return [first[epoch] for epoch in sorted(first)]


def _last_fault(history: History, before: float) -> Fault | None:
    return max((each for each in history.faults if each.time < before), key=lambda each: each.time, default=None)


def _run_during_commit(history: History, start: Start) -> int:
    """Steps that the group before ran while its last commit was in flight."""
    before = [each for each in history.writings if each.epoch < start.epoch]
    if not before or _completed(before[-1], start):
        return 0
    flight = before[-1]
    return history.ended(flight.epoch) - flight.step


def _completed(writing: Writing, start: Start) -> bool:
    return writing.ended is not None or writing.step <= start.step


def _is_share(rows: Sequence[int], share: Sequence[int]) -> bool:
    return all(row in (-1, planned) for row, planned in zip(rows, share, strict=True))


def _believed(history: History, commit: Stored, until: int | None = None) -> bool:
    later = [step for epoch, step in (history.bases or {}).items() if epoch > commit.epoch]
    if until is not None:
        later = [s for e, s in (history.bases or {}).items() if commit.epoch < e <= until]
    return all(commit.step <= base for base in later)
