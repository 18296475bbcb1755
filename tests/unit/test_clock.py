from __future__ import annotations

import pytest

from raycnn.training import clock as clocks
from raycnn.training.clock import Clock, share


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; it passes when it is told to."""
    now = [0.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])
    return now


def test_time_in_an_inner_phase_counts_to_it_alone(time: list[float]) -> None:
    clock = Clock()
    with clock("outer"):
        time[0] += 1
        with clock("inner"):
            time[0] += 10
            with clock("innermost"):
                time[0] += 100
        time[0] += 1
        with clock("inner"):
            time[0] += 10
    assert clock.seconds == {"outer": 2, "inner": 20, "innermost": 100}
    assert clock.total == 122


def test_clocks_share_a_phase_and_one_may_count_an_inner_phase(time: list[float]) -> None:
    one, other = Clock(), Clock()
    with share([one, other], "both"):
        time[0] += 4
        with one("own"):
            time[0] += 2
    assert one.seconds == {"both": 1, "own": 2}
    assert other.seconds == {"both": 3}


def test_a_phase_that_raises_is_counted(time: list[float]) -> None:
    clock = Clock()

    def fail() -> None:
        with clock("outer"), clock("inner"):
            time[0] += 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.seconds == {"outer": 0, "inner": 3}
