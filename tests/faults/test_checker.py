"""The checker of the promises: a good history passes, and each promise has one that breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raycnn.data.plan import Plan
from tests.faults.kit import checker
from tests.faults.kit.history import Fault, History, Start, Step, Stored, Writing

PLAN = Plan(num_rows=16, global_batch=4, seed=1)
EVERY = 3


def steps(epoch: int, first: int, stop: int, at: float, world: int = 2) -> tuple[Step, ...]:
    return tuple(
        Step(epoch, number, rank, world, tuple(PLAN.share(number, rank, world)[0].tolist()), at + number)
        for number in range(first, stop)
        for rank in range(world)
    )


GOOD = History(
    steps=(*steps(2, 0, 5, 100), *steps(3, 3, 8, 200, world=1)),
    starts=(Start(2, 0, 0, 99), Start(3, 3, 0, 199)),
    faults=(Fault("kill", 104.5),),
    writings=(Writing(2, 3, 102.1, 102.9), Writing(3, 6, 205.1, 205.9), Writing(3, 8, 207.1, 207.9)),
    stored=(Stored(0, 1, True), Stored(3, 2, True), Stored(6, 3, True), Stored(8, 3, True)),
    bases={1: -1, 2: 0, 3: 3},
)
"""Two ranks are killed in step 5; one goes on from the commit of step 3 and trains to step 8, two epochs."""


def broken(history: History) -> set[str]:
    return {line.partition(":")[0] for line in checker.check(history, PLAN, EVERY)}


def test_a_good_history_keeps_all_promises() -> None:
    assert checker.check(GOOD, PLAN, EVERY) == []
    assert checker.recoveries(GOOD) == [pytest.approx(100.5)]
    assert [each.epoch for each in checker.lineage(GOOD)] == [2] * 6 + [3] * 5
    assert checker.steps_lost(GOOD, GOOD.starts[1]) == 2


def test_p1_too_many_steps_are_redone() -> None:
    late = replace(GOOD, steps=(*steps(2, 0, 7, 100), *steps(3, 3, 8, 200)))
    assert broken(late) == {"P1"}
    in_flight = Writing(2, 6, 106.1, None)
    assert broken(replace(late, writings=(*GOOD.writings[:1], in_flight, *GOOD.writings[1:]))) == set()


def test_p1_two_commits_in_flight() -> None:
    overlapping = (Writing(3, 6, 205.1, 207.5), Writing(3, 8, 207.1, 207.9))
    assert broken(replace(GOOD, writings=overlapping)) == {"P1"}


def test_p1_two_steps_redone_after_an_announced_fault() -> None:
    assert broken(replace(GOOD, faults=(Fault("drain", 104.5, announced=True),))) == {"P1"}


def test_p2_slow_recoveries() -> None:
    assert checker.slow([59.0] * 19 + [80.0]) == []
    assert checker.slow([59.0] * 18 + [80.0] * 2)
    assert checker.percentile_95(range(1, 101)) == 95


def test_p2_a_step_of_the_group_that_was_hit_is_no_recovery() -> None:
    finished = replace(GOOD, steps=(*steps(2, 0, 6, 100), *steps(3, 3, 8, 200, world=1)))
    assert checker.recoveries(finished) == [pytest.approx(101.5)]
    assert checker.recoveries(replace(finished, starts=GOOD.starts[:1])) == [pytest.approx(0.5)]


def test_p3_other_bits() -> None:
    assert checker.other_bits({"weights": "a", "step": 8}, {"weights": "a", "step": 8}) == []
    assert checker.other_bits({"weights": "b", "step": 8}, {"weights": "a", "step": 8}) == ["P3: weights differs"]


def test_p4_rows_of_another_step() -> None:
    swapped = tuple(replace(each, rows=each.rows[::-1]) if each.step == 7 else each for each in GOOD.steps)
    assert broken(replace(GOOD, steps=swapped)) == {"P4"}
    halved = tuple(replace(each, world=1) if each.step == 4 else each for each in GOOD.steps)
    assert broken(replace(GOOD, steps=halved)) == {"P4"}


def test_p5_a_row_twice_and_a_row_never() -> None:
    first = GOOD.steps[0]
    doubled = (replace(first, rows=(first.rows[0], first.rows[0])), *GOOD.steps[1:])
    assert any(
        line.startswith("P5: epoch 0: 1 rows twice") for line in checker.uneven(replace(GOOD, steps=doubled), 16)
    )


def test_p5_a_step_that_nobody_trained() -> None:
    skipped = tuple(each for each in GOOD.steps if each.step != 1)
    assert "P5" in broken(replace(GOOD, steps=skipped))


def test_p5_a_bad_row_is_neither_twice_nor_missing() -> None:
    first = GOOD.steps[0]
    masked = replace(GOOD, steps=(replace(first, rows=(-1, first.rows[1])), *GOOD.steps[1:]))
    assert checker.uneven(masked, 16, bad=[first.rows[0]]) == []
    assert checker.uneven(masked, 16) != []


def test_p6_a_broken_commit_and_a_moment_without_any() -> None:
    assert broken(replace(GOOD, stored=(*GOOD.stored[:3], Stored(8, 3, False)))) == {"P6"}
    assert checker.invalid(GOOD, [False, True, True]) == []
    assert checker.invalid(GOOD, [True, False, True]) != []


def test_p7_a_group_that_starts_from_what_nobody_committed() -> None:
    assert "P7" in broken(replace(GOOD, stored=(GOOD.stored[0], *GOOD.stored[2:]), writings=GOOD.writings[1:]))
    assert "P7" in broken(replace(GOOD, starts=(GOOD.starts[0], Start(3, 4, 0, 199))))


def test_p7_a_fenced_out_writer_commits() -> None:
    woken = (*GOOD.writings, Writing(2, 6, 206.0, 206.5))
    assert broken(replace(GOOD, writings=woken)) == {"P7"}
    refused = (*GOOD.writings, Writing(2, 6, 206.0, None))
    assert broken(replace(GOOD, writings=refused)) == set()


def test_p7_a_second_job_is_refused_too_late() -> None:
    assert checker.two_writers(GOOD, [4.9]) == []
    assert checker.two_writers(GOOD, [5.1]) != []


def test_p8_a_bad_row_is_trained_on_or_a_good_one_recorded() -> None:
    assert checker.trained_on_bad(GOOD, {99: "truncated"}, [99]) == []
    assert checker.trained_on_bad(GOOD, {3: "truncated"}, [3]) == ["P8: row 3 (truncated) was trained on"]
    assert checker.trained_on_bad(GOOD, {99: "truncated"}, [3]) == ["P8: row 3 is good, and recorded as bad"]
