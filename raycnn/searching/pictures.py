"""Pictures of a search: learning curves, and depth against learning rate."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from raycnn.searching.answer import ranking, scored
from raycnn.searching.effects import RATE, depth_order, rate_cells
from raycnn.searching.records import TrialRecord
from raycnn.training.metrics import Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Array = npt.NDArray[np.float64]

MISSING: Final = "no pictures without matplotlib: pip install 'raycnn[search]'"
"""What to tell the user where a picture is None for want of matplotlib."""

_PALETTE = "viridis"  # ordered like depths are, and told apart by the colour-blind and in print
_LIGHTEST = 0.85
_LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709: how bright a red, green and blue seem
_MANY = 20
_MAX_NAMED = 10
_DPI = 150


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def learning_curves(records: Sequence[TrialRecord], metric: str, mode: Mode) -> bytes | None:
    """A PNG: the metric of every trial over epochs, coloured by depth, the best one thick.

    Stopped trials end with a cross, failed ones are dashed and named. None without matplotlib or any finite value.
    """
    points = {record.id: _points(record, metric) for record in records}
    values = [value for _, line in points.values() for value in line]
    if not values or not available():
        return None
    depths = sorted({record.depth for record in records}, key=depth_order)
    colours = dict(zip(depths, _colours(np.linspace(0, _LIGHTEST, len(depths))), strict=True))
    best = next(iter(ranking(records, metric, mode)), None)
    figure, axes = _figure(8.5, 4.8)
    thin = {"linewidth": 0.9 if len(records) > _MANY else 1.5, "markersize": 4, "alpha": 0.75, "zorder": 2}
    thick = {"linewidth": 3, "markersize": 6, "zorder": 3}
    for record in records:
        epochs, line = points[record.id]
        colour, dashes = colours[record.depth], "--" if record.status == "failed" else "-"
        style: dict[str, Any] = thick if record is best else thin
        axes.plot(epochs, line, marker="o", color=colour, linestyle=dashes, **style)
        if record.status == "stopped":
            axes.plot(epochs[-1:], line[-1:], marker="X", markersize=8, markeredgecolor="white", color=colour, zorder=4)
    axes.set_xlim(left=0)
    if axes.get_xlim()[1] >= 2:
        axes.locator_params(axis="x", integer=True)
    low, high = _limits(values, mode)
    axes.set_ylim(low, high)
    axes.set(xlabel="epochs", ylabel=f"validation {_title(metric)}")
    above = sum(max(line, default=high) > high for _, line in points.values())
    axes.set_title(f"{len(records)} trials" + (f" ({above} leave the frame)" if above else ""), loc="left")
    axes.grid(color="0.9")
    figure.legend(handles=_legend(records, colours, best), loc="outside right upper", frameon=False)
    return _png(figure)


def _legend(records: Sequence[TrialRecord], colours: Mapping[str, str], best: TrialRecord | None) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=2, label=f"depth {depth}") for depth, colour in colours.items()]
    if best is not None:
        handles.append(Line2D([], [], color=colours[best.depth], linewidth=3, marker="o", label=f"best: {best.id}"))
    stopped = sum(record.status == "stopped" for record in records)
    if stopped:
        handles.append(Line2D([], [], color="0.3", linewidth=0, marker="X", markersize=8, label=f"{stopped} stopped"))
    failed = [record.id for record in records if record.status == "failed"]
    if failed:
        names = ", ".join(failed[:_MAX_NAMED] + ["…"] * (len(failed) > _MAX_NAMED))
        label = fill(f"{len(failed)} failed: {names}", 20)
        handles.append(Line2D([], [], color="0.3", linestyle="--", label=label))
    return handles


def heat_map(records: Sequence[TrialRecord], metric: str, mode: Mode) -> bytes | None:
    """A PNG: the best metric by depth and learning rate (cells as in `rate_cells`), with the number of trials.

    None without matplotlib, optim.lr, two depths, or any finite value.
    """
    rated = [record for record in records if RATE in record.values]
    found = {record.id: value for value, record in scored(rated, metric, mode)}
    depths = sorted({record.depth for record in rated}, key=depth_order)
    if len(depths) < 2 or not found or not available():
        return None
    texts, cell_N = rate_cells([record.values[RATE] for record in rated])
    best_DR = np.full((len(depths), len(texts)), np.nan)
    count_DR = np.zeros(best_DR.shape, int)
    better = np.fmax if mode == "max" else np.fmin
    for record, cell in zip(rated, cell_N, strict=True):
        at = depths.index(record.depth), cell
        count_DR[at] += 1
        best_DR[at] = better(best_DR[at], found.get(record.id, np.nan))
    figure, axes = _figure(2.6 + 0.95 * len(texts), 1.6 + 0.75 * len(depths))
    _cells(figure, axes, best_DR, count_DR, mode, f"best validation {_title(metric)}")
    axes.set_xticks(range(len(texts)), [text.replace(" to ", "\nto ") for text in texts])
    axes.set_yticks(range(len(depths)), depths)
    axes.set(xlabel="learning rate", ylabel="unfreezing depth")
    return _png(figure)


def _cells(figure: Figure, axes: Axes, best_DR: Array, count_DR: npt.NDArray[np.int64], mode: Mode, title: str) -> None:
    low, high = _limits(best_DR[np.isfinite(best_DR)].tolist(), mode, margin=0)
    colours = _PALETTE if mode == "max" else f"{_PALETTE}_r"
    axes.set_facecolor("0.93")
    image = axes.imshow(best_DR, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for (depth, rate), count in np.ndenumerate(count_DR):
        value = best_DR[depth, rate]
        known = bool(np.isfinite(value))
        if count:
            text = f"{value:.3f}\n{count} trial{'' if count == 1 else 's'}" if known else f"{count} failed"
            dark = known and np.dot(image.cmap(image.norm(value))[:3], _LUMA) < 0.5
            axes.text(rate, depth, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(np.arange(best_DR.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(best_DR.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=title)


def _points(record: TrialRecord, metric: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the evaluations that have a finite one."""
    values = record.values_of(metric)
    known = [(each.epochs, v) for each, v in zip(record.evaluations, values, strict=True) if v is not None]
    finite = [(epochs, value) for epochs, value in known if math.isfinite(value)]
    return [epochs for epochs, _ in finite], [value for _, value in finite]


def _limits(values: Sequence[float], mode: Mode, margin: float = 0.04) -> tuple[float, float]:
    """All values between them, but for a loss that ran away and would flatten the rest."""
    low, high = min(values), max(values)
    if mode == "min":
        middle = float(np.median(values))
        high = min(high, middle + 3 * (middle - low) or high)
    pad = margin * (high - low) if high > low else 0.01
    return low - pad, high + pad


def _title(metric: str) -> str:
    return metric.replace("_", " ").replace("auroc", "AUROC").replace("f1", "F1")


def _colours(places: Array) -> list[str]:
    from matplotlib import colormaps, colors

    return [colors.to_hex(each) for each in colormaps[_PALETTE](places)]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)  # without pyplot there is no window and no state: Agg draws
    return stream.getvalue()
