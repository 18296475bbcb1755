"""What a cross-validation says, and how it is shown."""

from __future__ import annotations

from statistics import stdev
from typing import Any

import pytest

from raycnn.searching.folds import spread
from raycnn.searching.folds_report import render


def test_mean_and_spread_over_folds() -> None:
    values = (0.9, 0.8, 0.85, 0.95)
    found = spread([{"accuracy": value, "auroc": None if value == 0.8 else 0.5} for value in values])
    assert found["mean"] == {"accuracy": pytest.approx(0.875), "auroc": None}
    sd = stdev(values)
    assert found["sd"]["accuracy"] == pytest.approx(sd)
    assert found["standard_error"]["accuracy"] == pytest.approx(sd * (1 / 4 + 1 / 3) ** 0.5), "held out / trained on"
    assert found["standard_error"]["auroc"] is None


def result(**changes: Any) -> dict[str, Any]:
    metrics = [{"accuracy": 0.9, "loss": 0.3, "brier": 0.1}, {"accuracy": 0.8, "loss": 0.5, "brier": 0.2}]
    folds = [
        {
            "fold": n,
            "rows": {"train": 60, "val": 60},
            "step": 12,
            "metrics": each,
            "folder": f"/x/s/search/trials/000{n}",
        }
        for n, each in enumerate(metrics)
    ]
    rows = [
        {"key": "a/" + 60 * "x" + "\x1b.png", "label": "a", "predicted": "b", "probability": 0.98, "fold": 1,
         "loss": 4.0, "suspect": True},
        {"key": "b.png", "label": "b", "predicted": "b", "probability": 0.5, "fold": 0, "loss": 0.7, "suspect": False},
    ]  # fmt: skip
    return {
        "run": "s", "metric": "accuracy", "rows": 120, "folds": folds, **spread(metrics), "seconds": 61.2,
        "predictions": "/x/s/predictions/out-of-fold.parquet", "suspects": {"count": 1, "rows": rows},
    } | changes  # fmt: skip


def test_the_table() -> None:
    head, table, suspects, keys, files = render(result()).split("\n\n")
    assert head == "s: 2 folds of 120 rows in 61 s"
    assert [line.split() for line in table.split("\n")] == [
        ["fold", "rows", "steps", "accuracy", "loss"],
        ["0", "60", "12", "0.900", "0.300"],
        ["1", "60", "12", "0.800", "0.500"],
        ["mean", "0.850", "0.400"],
        ["standard", "deviation", "0.071", "0.141"],
        ["standard", "error", "0.087", "0.173"],
    ]
    assert suspects.startswith("rows furthest from their label")
    lines = [line.split() for line in keys.split("\n")]
    assert lines[0] == ["label", "predicted", "sure", "loss", "key"]
    assert lines[1] == ["*", "a", "b", "98%", "4.000", "a/" + 60 * "x" + "?.png"]  # the whole key, and nothing else
    assert lines[2] == ["b", "b", "50%", "0.700", "b.png"]
    assert keys.endswith("\n* of another class by confident learning; 1 rows in all")
    assert files.split() == ["predictions", "/x/s/predictions/out-of-fold.parquet", "folds", "/x/s/search/trials"]


def test_numbers_and_several_labels() -> None:
    row = {"key": "k", "predicted": 2.5, "label": 31.25, "probability": None, "fold": 0, "loss": 9.0, "suspect": None}
    several = row | {"label": ["a", "b"], "predicted": []}
    shown = render(result(metric="brier", suspects={"count": None, "rows": [row, several]}))
    assert "*" not in shown
    assert "Brier score" in shown, "the metric that the run goes by"
    assert [line.split() for line in shown.split("\n") if line.endswith("  k")] == [
        ["31.25", "2.5", "9.000", "k"], ["a,", "b", "-", "9.000", "k"]
    ]  # fmt: skip
