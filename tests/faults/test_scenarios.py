"""Every scenario has a test, and the table tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.kit.scenarios import SCENARIOS, Seen, Table


def test_every_scenario_has_a_test() -> None:
    texts = "\n".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    marked = set(re.findall(r'mark\.scenario\("([^"]+)"\)', texts))
    assert marked == SCENARIOS.keys()


def test_the_table_tells_what_failed() -> None:
    rows = [Seen("NaN or Inf", "a", passed=True), Seen("worker hangs", "b", "12 steps again", 12, 3.21)]
    *_, hangs, nan = Table(rows).lines()
    assert "| FAILED | 12 | 3.2 |" in hangs
    assert "| as expected | - | - |" in nan
