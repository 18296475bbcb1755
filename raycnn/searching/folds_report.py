"""A cross-validation's answer as plain text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from raycnn.results.report import TITLES, number, printable, table

_SHOWN: Final = (
    "accuracy", "balanced_accuracy", "macro_f1", "auroc", "map", "micro_f1", "subset_accuracy",
    "rmse", "mae", "r2", "loss",
)  # fmt: skip
_OVER_ALL: Final = (("mean", "mean"), ("sd", "standard deviation"), ("standard_error", "standard error"))


def render(result: Mapping[str, Any]) -> str:
    """The result of `cross_validate` as text, without a final newline; only keys and addresses may be long."""
    head = f"{result['run']}: {len(result['folds'])} folds of {result['rows']} rows in {result['seconds']:.0f} s"
    parts = [printable(head), _folds(result), _suspects(result["suspects"]), _files(result)]
    return "\n\n".join(filter(None, parts))


def _folds(result: Mapping[str, Any]) -> str:
    folds = result["folds"]
    names = [name for name in _SHOWN if any(fold["metrics"].get(name) is not None for fold in folds)]
    if result["metric"] not in names:
        names.insert(0, result["metric"])
    lines = [["fold", "rows", "steps", *(TITLES[name] for name in names)]]
    for fold in folds:
        values = (number(fold["metrics"].get(name)) for name in names)
        lines.append([str(fold["fold"]), str(fold["rows"]["val"]), str(fold["step"]), *values])
    for key, title in _OVER_ALL:
        lines.append([title, "", "", *(number(result[key].get(name)) for name in names)])
    return table(lines)


def _suspects(suspects: Mapping[str, Any]) -> str:
    rows: Sequence[Mapping[str, Any]] = suspects["rows"]
    if not rows:
        return ""
    lines = [["", "label", "predicted", "sure", "loss"]]
    for row in rows:
        sure = "" if row["probability"] is None else f"{row['probability']:.0%}"
        mark = "*" if row["suspect"] else ""
        lines.append([mark, _text(row["label"]), _text(row["predicted"]), sure, number(row["loss"])])
    keys = ["key", *(printable(row["key"]) for row in rows)]
    listed = [f"{line}  {key}" for line, key in zip(table(lines).split("\n"), keys, strict=True)]
    count = suspects["count"]
    note = "" if count is None else f"\n* of another class by confident learning; {count} rows in all"
    return "\n".join(["rows furthest from their label, by networks that never saw them", "", *listed]) + note


def _text(value: Any) -> str:
    if isinstance(value, list):
        return printable(", ".join(value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _files(result: Mapping[str, Any]) -> str:
    folder = result["folds"][0]["folder"].rpartition("/")[0]
    return f"predictions  {result['predictions']}\nfolds        {folder}"
