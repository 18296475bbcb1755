"""metrics.jsonl, rebuilt from commits."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from raycnn.training.metrics_log import merge


def line(step: int, **values: Any) -> str:
    return json.dumps({"step": step, **values})


def steps(lines: list[str]) -> list[int]:
    return [json.loads(line)["step"] for line in lines]


def test_a_commit_adds_its_lines() -> None:
    first = merge([], [line(5), line(10), line(10, val_loss=1)], 10)
    assert first == [line(5), line(10), line(10, val_loss=1)]
    assert merge(first, [line(15), line(20)], 20) == [*first, line(15), line(20)]
    assert merge(first, [], 12) == first


def test_the_same_commit_again_changes_nothing() -> None:
    once = merge([line(5)], [line(10), line(10, val_loss=1)], 10)
    assert merge(once, [line(10), line(10, val_loss=1)], 10) == once


def test_lines_beyond_the_resumed_step_are_dropped() -> None:
    existing = [line(5), line(10), line(15), line(20)]
    assert steps(merge(existing, [line(10)], 10)) == [5, 10]
    assert steps(merge(existing, [], 10)) == [5, 10]
    assert steps(merge(existing, [], 0)) == []


def test_lines_of_steps_done_again_are_replaced() -> None:
    existing = [line(10), line(15, seconds=1), line(20, seconds=2)]
    assert merge(existing, [line(15, seconds=3), line(20, seconds=4)], 20) == [
        line(10),
        line(15, seconds=3),
        line(20, seconds=4),
    ]


def test_what_is_no_line_is_dropped() -> None:
    existing = [line(5), "", '{"step": 7, "lo', "[1]", "3", '{"loss": 1}', '{"step": null}', line(8)]
    assert merge(existing, [line(10)], 10) == [line(5), line(8), line(10)]


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=12))
def test_any_history_of_commits_and_crashes_gives_each_step_once(history: list[tuple[int, bool]]) -> None:
    """Commits of 1 to 9 steps, each lost before its lines are merged or not; the next attempt merges it again."""
    done, lines = 0, list[str]()
    for attempt, (length, crashed) in enumerate(history):
        commit = [line(step, attempt=attempt) for step in range(done + 1, done + length + 1)]
        done += length
        if crashed:
            lines += [line(done + 3, attempt=-1)]  # of a writer that was fenced out
        lines = merge(lines, commit, done)
        if crashed:
            lines = merge(lines, commit, done)
    assert steps(lines) == list(range(1, done + 1))
