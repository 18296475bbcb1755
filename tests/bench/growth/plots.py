"""Pictures of what the model gives: images a second, and what is busy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.growth.simulate import BUSY

_ORDERED, _PER_RANK, _NARROW = "#c8553d", "#3b7ddd", "#7a7a7a"
_LINES = {
    ("many prefixes", "per rank"): ("one stream per rank", _PER_RANK, "-", "o"),
    ("many prefixes", "ordered"): ("one ordered stream", _ORDERED, "-", "s"),
    ("one prefix", "per rank"): ("one stream per rank, 5,500 GET/s", _NARROW, "--", None),
}
_COLOURS = {
    "decoding CPUs": "#2a9d8f", "scheduling loop": _ORDERED, "network": "#8e6bbf", "object store requests": _NARROW,
    "Ray's head": "#e9a03b", "Train's controller": "#b56576",
}  # fmt: skip


def plot_rates(points: Any, rates: Sequence[int], gpus: Sequence[int], path: Path) -> None:
    """Images a second over GPUs, a panel for each rate of a GPU."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, rate in zip(figure.subplots(1, len(rates), sharey=True), rates, strict=True):
        axes.plot(gpus, [rate * number for number in gpus], color="black", linewidth=0.7, label="GPUs that never wait")
        for (store, design), (label, colour, style, marker) in _LINES.items():
            reached = [points[store, design, rate, number].images_s for number in gpus]
            axes.plot(gpus, reached, style, color=colour, marker=marker, markersize=4, label=label)
        axes.set_yscale("log")
        _dress(axes, gpus, f"a GPU takes {rate:,} images/s (assumed)")
    figure.axes[0].set_ylabel("images/s (simulated)")
    figure.axes[0].legend(fontsize=7, frameon=False)
    _save(figure, path)


def plot_shares(points: Any, rate: int, gpus: Sequence[int], path: Path) -> None:
    """How busy each resource is over GPUs, a panel for each design."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    designs = {"ordered": "one ordered stream", "per rank": "one stream per rank"}
    for axes, (design, label) in zip(figure.subplots(1, 2, sharey=True), designs.items(), strict=True):
        for name, colour in _COLOURS.items():
            shares = [100 * points["many prefixes", design, rate, number].shares[name] for number in gpus]
            axes.plot(gpus, shares, color=colour, marker="o", markersize=3, label=name)
        axes.axhline(100 * BUSY, color="black", linewidth=0.7, linestyle=":")
        axes.set_ylim(0, 105)
        _dress(axes, gpus, f"{label}, {rate:,} images/s a GPU")
    figure.axes[0].set_ylabel("% of the time busy (simulated)")
    figure.axes[0].legend(fontsize=7, frameon=False)
    _save(figure, path)


def _dress(axes: Any, gpus: Sequence[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(gpus, [str(number) for number in gpus])
    axes.set_xlabel("GPUs")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "raycnn"}):
        figure.savefig(path, metadata={"Date": None})
