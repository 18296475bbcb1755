"""An evaluation as a plain-text table for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 100
_MAX_CLASSES = 20
_MAX_NAME = 28
_CURVE_ENDS = 6
_LOSSES = ("train_loss", "val_loss", "gap")
TITLES = {
    "accuracy": "accuracy",
    "accuracy_tuned": "with the thresholds",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "balanced_accuracy_tuned": "with the thresholds",
    "macro_f1": "macro F1",
    "macro_f1_tuned": "with the thresholds",
    "f1": "F1",
    "f1_tuned": "with the thresholds",
    "map": "mean average precision",
    "micro_f1": "micro F1",
    "micro_f1_tuned": "with the thresholds",
    "subset_accuracy": "subset accuracy",
    "subset_accuracy_tuned": "with the thresholds",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "r2": "R2",
    "brier": "Brier score",
    "ece": "calibration error",
    "ece_calibrated": "with the temperature",
    "loss": "loss",
    "loss_calibrated": "with the temperature",
}
"""Of metrics, by name."""
_RATIOS = {"precision": "precision", "recall": "recall", "f1": "F1", "average_precision": "average precision"}


def render(
    evaluation: Mapping[str, Any],
    *,
    seconds: Mapping[str, float] | None = None,
    beside: Mapping[str, Mapping[str, float | None]] | None = None,
) -> str:
    """The evaluation as text of at most 100 columns, without a final newline.

    Metrics with their intervals, and what there is of classes, confusion matrix and seconds by phase. Of more than 20
    classes the 20 with the lowest F1 are shown; of a matrix too wide for the page the 20 most frequent confusions.

    Args:
        evaluation: {run, step, split, rows, metrics, per_class, confusion} as `raycnn evaluate --json` prints
            it; a metric's interval is beside it under its name + "_ci95". None shows as "-".
        seconds: time by phase.
        beside: metrics of at most two others on the same rows by column title, e.g.
            {"frozen probe": {"accuracy": 0.855}}.
    """
    classes = [printable(row["class"]) for row in evaluation.get("per_class", [])]
    head = "{run}, step {step}, {split} split, {rows} rows".format_map(evaluation)
    parts = [
        _fit(printable(head), _WIDTH),
        metrics_table(evaluation["metrics"], beside or {}),
    ]
    if classes:
        parts.append(_per_class(evaluation["per_class"], classes))
    if "confusion" in evaluation:
        parts.append(_confusion(evaluation["confusion"], classes))
    if seconds:
        parts.append(table([["phase", "seconds"], *([printable(k), f"{v:.1f}"] for k, v in seconds.items())]))
    return "\n\n".join(parts)


def render_curves(curves: Sequence[Mapping[str, float | None]]) -> str:
    """Training and validation loss by epoch, {epoch, train_loss, val_loss, gap} each; of many the first and last."""
    if not curves:
        return ""
    lines = [[f"{point['epoch']:g}", *(number(point[key]) for key in _LOSSES)] for point in curves]
    if len(lines) > 2 * _CURVE_ENDS:
        lines[_CURVE_ENDS:-_CURVE_ENDS] = [["..."] * 4]
    return table([["epoch", "training loss", "validation loss", "gap"], *lines])


def metrics_table(metrics: Mapping[str, Any], beside: Mapping[str, Mapping[str, float | None]]) -> str:
    """A line for each metric with its interval, and other classifiers' values beside it."""
    lines = [["metric", "value", "95 % interval", *(printable(title) for title in beside)]]
    for name, title in TITLES.items():
        others = [metrics_of.get(name) for metrics_of in beside.values()]
        if metrics.get(name) is None and all(other is None for other in others):
            continue
        interval = metrics.get(name + "_ci95")
        span = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        lines.append([title, number(metrics.get(name)), span, *map(number, others)])
    return table(lines)


def _per_class(per_class: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    order = list(range(len(per_class)))
    note = ""
    if len(per_class) > _MAX_CLASSES:
        # a class that does not occur has no F1 and nothing to show
        worst = sorted((i for i in order if per_class[i]["f1"] is not None), key=lambda i: per_class[i]["f1"])
        order = worst[:_MAX_CLASSES]
        note = f"\n(the {len(order)} of {len(per_class)} classes with the lowest F1)"
    ratios = {name: title for name, title in _RATIOS.items() if name in per_class[0]}
    lines = [["class", "rows", *ratios.values()]]
    for i in order:
        row = per_class[i]
        lines.append([classes[i], str(row["rows"]), *(number(row[name]) for name in ratios)])
    return table(lines) + note


def _confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    header = ["label \\ predicted", *classes]
    lines = [header, *([name, *map(str, row)] for name, row in zip(classes, confusion, strict=True))]
    if len(classes) <= _MAX_CLASSES:
        whole = table(lines)
        if columns(whole.split("\n", 1)[0]) <= _WIDTH:
            return whole
    wrong = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n]
    wrong.sort(key=lambda cell: (-cell[0], cell[1], cell[2]))
    if not wrong:
        return "no confusions"
    shown = wrong[:_MAX_CLASSES]
    pairs = table([["label", "predicted", "rows"], *([classes[i], classes[j], str(n)] for n, i, j in shown)])
    return pairs + f"\n(the {len(shown)} most frequent of {len(wrong)} confusions)"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the rest to the right."""
    cells = [[_fit(cell, _MAX_NAME) for cell in line] for line in lines]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell + " " * (width - columns(cell)) if i == 0 else " " * (width - columns(cell)) + cell
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def printable(text: str) -> str:
    """Names come from data: no control characters or escape sequences reach the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def columns(text: str) -> int:
    """Terminal columns: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: str, width: int) -> str:
    """The text, its middle left out where it is too wide."""
    if columns(text) <= width:
        return text
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    while columns(head) + columns(tail) >= width:
        head, tail = (head[:-1], tail) if len(head) > len(tail) else (head, tail[1:])
    return f"{head}…{tail}"
