"""The benches' table as a picture."""

from __future__ import annotations

from pathlib import Path

from tests.bench.table import plot


def test_a_figure_that_a_note_follows_has_a_bar(tmp_path: Path) -> None:
    rows = [
        ("a trial's start, s", "0.1 at most, 0.1 median", "-", "-", "<= 3"),
        ("a search, s", "85, best accuracy 0.841", "another 241", "2.8", ">= 3"),
        ("memory, MB", "788", "715", "1.10", "flat"),
    ]
    plot(rows, tmp_path / "table.svg")
    assert (tmp_path / "table.svg").read_text().count("(goal") == 2
