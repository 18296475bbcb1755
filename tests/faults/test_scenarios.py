"""The table of scenarios tells the truth."""

from __future__ import annotations

from tests.faults.kit.scenarios import Seen, Table


def test_the_table_tells_what_failed() -> None:
    rows = [Seen("NaN or Inf", "a", passed=True), Seen("worker hangs", "b", "12 steps again", 12, 3.21)]
    *_, hangs, nan = Table(rows).lines()
    assert "| FAILED | 12 | 3.2 |" in hangs
    assert "| as expected | - | - |" in nan
