"""Whose turn it is in a pack, on a clock of our own."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raycnn.searching.seating import GATHER_AT_MOST_S, GATHER_S, Seating

LONG_S = 100.0


def seating(asked: str, silent: str = "", now: float = 0.0) -> Seating:
    """Trials named by one letter, all of one key at step 0."""
    made = Seating()
    for trial in asked + silent:
        made.sit(trial, "key", 0, now)
    for trial in asked:
        made.ask(trial, now)
    return made


def test_nobody_goes_before_somebody_asked() -> None:
    assert seating("").turn(LONG_S) == []
    made = seating("", "ab")
    assert made.turn(LONG_S) == []
    assert made.wait_s(LONG_S) is None
    made.ask("stranger", LONG_S)
    assert made.turn(2 * LONG_S) == []


def test_they_go_together_when_all_have_asked_and_it_is_quiet() -> None:
    made = seating("ab")
    made.ask("b", 1.0)
    assert made.turn(1.0 + GATHER_S - 0.01) == []
    assert made.turn(1.0 + GATHER_S) == ["a", "b"]


def test_a_late_one_is_waited_for_so_long_and_no_longer() -> None:
    made = seating("a", "b")
    assert made.turn(GATHER_AT_MOST_S - 0.01) == []
    assert made.turn(GATHER_AT_MOST_S) == ["a", "b"]


def test_nobody_is_waited_for_where_nothing_is_shared() -> None:
    made = seating("a", "b")
    made.sit("c", "key", 5, 0.0)
    made.gathers = False
    assert made.turn(0.0) == ["a", "b"]


def test_the_wait_counts_from_the_first_that_asked() -> None:
    made = seating("a", "bc")
    made.ask("b", GATHER_AT_MOST_S - 0.1)
    assert made.turn(GATHER_AT_MOST_S - 0.05) == []
    assert made.turn(GATHER_AT_MOST_S) == ["a", "b", "c"]


def test_one_that_left_is_not_waited_for_and_does_not_go() -> None:
    made = seating("a", "bc")
    made.leave("b")
    made.leave("c")
    made.leave("c")
    assert made.turn(GATHER_S) == ["a"]
    made.leave("a")
    assert made.turn(LONG_S) == []


def test_the_hindmost_goes_first_and_those_ahead_wait_for_it() -> None:
    made = Seating()
    made.sit("ahead", "key", 20, 0.0)
    made.sit("behind", "key", 10, 0.0)
    made.ask("ahead", 0.0)
    assert made.turn(GATHER_S) == []  # the one behind may ask any moment
    made.ask("behind", 1.0)
    assert made.turn(1.0 + GATHER_S) == ["behind"]
    made.sit("behind", "key", 20, 5.0)
    made.ask("behind", 5.0)
    assert made.turn(5.0 + GATHER_S) == ["ahead", "behind"]


def test_one_behind_that_never_asks_holds_nobody_up() -> None:
    made = Seating()
    made.sit("behind", "key", 10, 0.0)
    made.sit("ahead", "key", 20, 0.0)
    made.ask("ahead", 0.0)
    assert made.turn(GATHER_AT_MOST_S) == ["ahead"]


def test_one_ahead_is_not_waited_for() -> None:
    made = seating("a")
    made.sit("ahead", "key", 5, 0.0)
    assert made.turn(GATHER_S) == ["a"]


def test_trials_of_different_keys_never_go_together() -> None:
    made = Seating()
    for trial, key in (("a", "k1"), ("b", "k2"), ("c", "k1")):
        made.sit(trial, key, 0, 0.0)
        made.ask(trial, 0.0)
    assert made.turn(GATHER_S) == ["a", "c"]
    for trial in ("a", "c"):
        made.sit(trial, "k1", 10, 1.0)
        made.ask(trial, 1.0)
    assert made.turn(1.0 + GATHER_S) == ["b"]


@pytest.mark.parametrize("silent", ["", "b"])
def test_who_looks_again_when_told_misses_no_turn_for_long(silent: str) -> None:
    made, now, looks = seating("a", silent), 0.0, 0
    while not made.turn(now):
        wait = made.wait_s(now)
        assert wait is not None
        assert wait > 0
        now, looks = now + wait, looks + 1
    due = GATHER_AT_MOST_S if silent else GATHER_S
    assert due <= now < due + 0.1
    assert looks < 60


TRIALS, KEYS = "abcd", ("k1", "k2")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["sit", "ask", "leave"]),
        st.sampled_from(TRIALS),
        st.sampled_from(KEYS),
        st.integers(0, 2),
        st.floats(0.0, 3.0),
    ),
    max_size=20,
)


@given(EVENTS)
@example([("sit", "a", "k1", 0, 0.0), ("sit", "b", "k1", 0, 1.86), ("ask", "a", "k1", 0, 0.0)])
def test_whatever_happens_one_group_of_the_hindmost_goes_in_time(
    events: list[tuple[str, str, str, int, float]],
) -> None:
    made, now, model = Seating(), 0.0, {}
    for event, trial, key, step, later in events:
        now += later
        if event == "sit":
            made.sit(trial, key, step, now)
            model[trial] = [key, step, False]
        elif event == "ask":
            made.ask(trial, now)
            if trial in model:
                model[trial][2] = True
        else:
            made.leave(trial)
            model.pop(trial, None)
    asked = [(step, key) for key, step, has_asked in model.values() if has_asked]
    turn = made.turn(now + GATHER_AT_MOST_S)
    assert bool(turn) == bool(asked)
    assert (made.wait_s(now) is None) == (not asked)
    if turn:
        step, key = min(asked)
        assert set(turn) == {trial for trial, seat in model.items() if seat[:2] == [key, step]}
    # once it is somebody's turn it stays so until there is a new word
    answers = [made.turn(now + 0.25 * n) for n in range(12)]
    assert all(not before or before == after for before, after in pairwise(answers))
