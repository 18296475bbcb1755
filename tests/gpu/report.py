"""The report, as one Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.bench.command import Row
from tests.bench.table import markdown as table
from tests.gpu.machine import driver, gpus


def markdown(rows: Sequence[Row], seconds: Mapping[str, float]) -> str:
    """The machine, the table, and what took how long."""
    took = [f"| {name} | {value:.0f} |" for name, value in seconds.items()]
    parts = [
        "# raycnn on this machine",
        *gpus(),
        driver(),
        table(rows).rstrip(),
        "\n".join(["| part | s |", "|---|---|", *took]),
    ]
    return "\n\n".join(parts) + "\n"
