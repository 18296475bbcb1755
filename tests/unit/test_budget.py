from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycnn.config import SearchConfig
from raycnn.searching.budget import Budget
from raycnn.storage import open_store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("raycnn.searching.budget.time.monotonic", lambda: now[0])
    return now


def test_what_every_start_spent_counts_together(tmp_path: Path, clock: list[float]) -> None:
    store, search = open_store(str(tmp_path)), SearchConfig(budget_s=60)
    first = Budget(search, store, places=2)
    clock[0] += 40
    assert not first.over()
    first.note()
    second = Budget(search, store, places=4)
    clock[0] += 19
    assert not second.over()
    clock[0] += 1
    assert second.over()
    assert second.spent() == pytest.approx((60, (40 * 2 + 20 * 4) / 3600), rel=1e-4)


def test_hours_of_all_places_count(tmp_path: Path, clock: list[float]) -> None:
    budget = Budget(SearchConfig(budget_gpu_hours=1), open_store(str(tmp_path)), places=8)
    clock[0] += 449
    assert not budget.over()
    clock[0] += 1
    assert budget.over()
    budget.note()
    assert json.loads(open_store(str(tmp_path)).get("search/spent.json")) == {"seconds": 450.0, "gpu_hours": 1.0}


def test_without_limits_nothing_is_over(tmp_path: Path, clock: list[float]) -> None:
    budget = Budget(SearchConfig(), open_store(str(tmp_path)), places=8)
    clock[0] += 1e9
    assert not budget.over()
