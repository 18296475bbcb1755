"""What the bench found, as a Markdown table and as a picture of how far each goal is met."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from matplotlib.figure import Figure

from raycnn.cluster import available_cpus
from tests.bench.command import Row

_GOAL = re.compile(r"(>=|<=) ([\d.]+)")
_LONGEST = 70
_FURTHEST = 8.0
"""Share of a goal beyond which a bar does not grow."""


def machine() -> str:
    """What all was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "torchvision"))
    graphics = f"GPUs: {torch.cuda.device_count()}" if torch.cuda.is_available() else "no GPU"
    python = f"Python {sys.version.split()[0]}"
    return f"{available_cpus()} CPUs ({platform.machine()}), {memory:.0f} GiB, {graphics}; {python}, {versions}"


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = ["| what | raycnn | against | ratio | goal |", "|---|---|---|---|---|"]
    return "\n".join([machine(), "", *lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def plot(rows: Sequence[Row], path: Path) -> None:
    """A bar for every ratio with a goal, as long as the share of its goal that it reaches, on a logarithmic axis."""
    bars = [bar for bar in map(_bar, rows) if bar is not None]
    figure = Figure(figsize=(10, 1.2 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    for place, (_, share, told) in enumerate(bars):
        axes.barh(place, share - 1, left=1, color="#3b7ddd" if share >= 1 else "#c8553d", height=0.6)
        axes.annotate(told, (max(share, 1), place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.set_xticks(ticks := [0.5, 1, 2, 4], [f"{tick:g} x" for tick in ticks])
    axes.set_xlim(0.5, max([4.0, *(1.5 * share for _, share, _ in bars)]))
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("measured, in terms of the goal")
    axes.set_title(machine(), fontsize=8, loc="left")
    figure.savefig(path, metadata={"Date": None})


def _bar(row: Row) -> tuple[str, float, str] | None:
    what, ours, against, ratio, goal = row
    aim = _GOAL.match(goal)
    if aim is None:
        return None
    value = float((ours if ratio == "-" else ratio).split()[0])  # what follows it is a note
    share = value / float(aim[2]) if aim[1] == ">=" else float(aim[2]) / value
    label = what if against == "-" else f"{what}, against {against.rstrip('0123456789. ')}"
    label = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
    return label, min(share, _FURTHEST), f"{value:g}  (goal {goal.replace('>=', '≥').replace('<=', '≤')})"
