"""Where a worker group has a place, and what the driver makes of a group's end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import raycnn
from raycnn.training import groups
from raycnn.training.groups import places
from raycnn.training.monitor import Monitor


def test_what_is_left_is_divided_anew() -> None:
    whole, rest = places({"CPU": 8.0}, 2, gpus=False), places({"CPU": 2.0}, 2, gpus=False)
    assert whole is not None
    assert rest is not None
    assert (whole.per_rank, rest.per_rank) == (1.0, 0.5)
    assert rest.per_rank * 2 + rest.task <= 2  # a decoding task has a place beside the ranks


@pytest.mark.parametrize("found", [{}, {"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}, {"GPU": 2.0}])
def test_a_run_on_two_gpus_has_no_place(found: dict[str, float]) -> None:
    assert places(found, 2, gpus=True) is None


def test_a_run_on_gpus_never_goes_on_without_them() -> None:
    assert places({"CPU": 8.0}, 2, gpus=True) is None
    found = places({"CPU": 8.0, "GPU": 2.0}, 2, gpus=True)
    assert found is not None
    assert found.gpus


def test_waiting_is_told_and_ends_when_a_node_comes_or_when_asked_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    config = raycnn.load_config(
        {"run": {"name": "cats", "storage": "runs"}, "data": {"source": "cats"}, "model": {"name": "reference/lenet"}},
        {},
    )
    leaving, said = threading.Event(), []
    monkeypatch.setattr(leaving, "wait", lambda _: None)

    def wait(*found: dict[str, float]) -> Any:
        left = list(found)

        def now() -> dict[str, float]:
            if len(left) == 1:
                leaving.set()
            return left.pop(0)

        monkeypatch.setattr(groups, "resources", now)
        leaving.clear()
        return groups._wait_for_places(config, False, leaving, lambda _, lines: said.extend(lines))

    assert wait({"CPU": 0}, {"CPU": 0}, {"CPU": 2}, {}).per_rank == 1.0
    assert said == ["cats: waiting, since 1 workers do not fit on the nodes there are"]
    assert wait({"CPU": 0}) is None


def test_a_monitor_forgets_the_group_before() -> None:
    monitor = Monitor()
    monitor.ask_to_leave()
    monitor.finish({"status": "preempted"})
    assert monitor.report({}, []) is True
    monitor.begin()
    assert monitor.report({}, []) is False
    assert monitor.outcome() is None
