"""Who is in a pack and whose turn it is, with a stand-in for the rank that trains: what it does is tested with it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import raycnn.searching.rank
from raycnn.errors import CheckpointError
from raycnn.searching.pack import Pack


class Rank:
    """Trains a step at a time; `hold` keeps it in the middle of one."""

    def __init__(self) -> None:
        self.leaving = False
        self.steps: dict[str, int] = {}
        self.stopped: list[str] = []
        self.trained: list[list[str]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.training = threading.Event()

    def do(self, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def place(self, trial: str, source: Any) -> None:
        return None

    def join(self, trial: str, values: Any, place: Any, spent_s: float) -> tuple[str, int]:
        self.steps[trial] = 0
        return "key", 0

    def drop(self, trial: str) -> None:
        self.steps.pop(trial, None)

    def stop(self, trial: str) -> None:
        self.stopped.append(trial)

    def train(self, trials: list[str]) -> dict[str, dict[str, Any]]:
        self.training.set()
        self.hold.wait()
        self.trained.append(trials)
        for trial in trials:
            self.steps[trial] += 1
        return {trial: {"step": self.steps[trial], "status": None, "error": None} for trial in trials}


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Rank:
    found = Rank()
    monkeypatch.setattr(raycnn.searching.rank, "open_rank", lambda *_: found)
    return found


def begun() -> Pack:
    pack = Pack([])
    pack.begin(None)  # type: ignore[arg-type]
    return pack


def test_a_late_goodbye_does_not_end_a_trial_that_came_back(rank: Rank) -> None:
    pack = begun()
    before = pack.join("a", {}, None, 0.0)
    now = pack.join("a", {}, None, 0.0)
    pack.leave("a", before)
    assert pack.advance("a")["step"] == 1
    pack.leave("a", now)
    assert pack.advance("a") == {"status": "stopped"}
    assert rank.stopped == ["a"]


def test_a_goodbye_without_a_ticket_is_for_good(rank: Rank) -> None:
    pack = begun()
    pack.join("a", {}, None, 0.0)
    pack.leave("a")
    assert pack.advance("a") == {"status": "stopped"}
    assert rank.steps == {}


def test_a_pause_lets_the_turn_end_and_no_other_begin(rank: Rank) -> None:
    pack = begun()
    pack.join("a", {}, None, 0.0)
    rank.hold.clear()
    asking = threading.Thread(target=pack.advance, args=("a",), daemon=True)
    asking.start()
    assert rank.training.wait(30)
    pack.pause()
    assert rank.leaving
    rank.hold.set()
    assert pack.join("b", {}, None, 0.0) == 1, "orders are still carried out"
    again = threading.Thread(target=pack.advance, args=("b",), daemon=True)
    again.start()
    again.join(3.0)  # longer than any gathering
    assert asking.is_alive()
    assert again.is_alive()
    assert rank.trained == [["a"]]


def test_who_waits_is_told_of_a_fault_of_the_program(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = begun()
    pack.join("a", {}, None, 0.0)
    monkeypatch.setattr(rank, "train", lambda trials: {})
    assert "KeyError" in pack.advance("a")["fatal"]
    pack.leave("a")
    assert rank.steps == {}, "orders are still carried out"


def test_what_a_pack_cannot_begin_with_is_raised(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Rank:
        raise CheckpointError("the index is gone", where="here")

    monkeypatch.setattr(raycnn.searching.rank, "open_rank", refuse)
    with pytest.raises(CheckpointError, match="the index is gone"):
        begun()
