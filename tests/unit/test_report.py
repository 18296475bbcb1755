from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest

from raycnn.results.report import render
from raycnn.results.statistics import wilson
from raycnn.training.metrics import classification_metrics, details


def evaluation(classes: list[str], rows: int = 200) -> dict[str, Any]:
    random = np.random.default_rng(0)
    labels = random.integers(len(classes), size=rows)
    logits = random.normal(size=(rows, len(classes))).astype(np.float32)
    logits[np.arange(rows), labels] += 2
    metrics: dict[str, Any] = classification_metrics(logits, labels)
    metrics["accuracy_ci95"] = wilson(int((logits.argmax(1) == labels).sum()), rows)
    return {"run": "solar", "step": 1200, "split": "test", "rows": rows, "metrics": metrics} | details(
        logits, labels, classes
    )


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_the_whole_page() -> None:
    page = render(
        {
            "run": "solar",
            "step": 300,
            "split": "test",
            "rows": 656,
            "metrics": {
                "accuracy": 0.8765,
                "accuracy_ci95": [0.849, 0.8995],
                "top5": None,
                "balanced_accuracy": 0.84,
                "macro_f1": 0.852,
                "auroc": None,
                "ece": 0.05,
                "loss": 0.31,
            },
            "per_class": [
                {"class": "defective", "rows": 205, "precision": 0.85, "recall": 0.74, "f1": 0.79},
                {"class": "ok", "rows": 451, "precision": None, "recall": 0.94, "f1": 0.91},
            ],
            "confusion": [[152, 53], [27, 424]],
        },
        seconds={"start": 14.0, "train": 201.26},
        beside={"frozen probe": {"accuracy": 0.855, "auroc": 0.9, "macro_f1": None}},
    )
    assert (
        page
        == """\
solar, step 300, test split, 656 rows

metric             value   95 % interval  frozen probe
accuracy           0.876  0.849 to 0.899         0.855
balanced accuracy  0.840                             -
macro F1           0.852                             -
AUROC                  -                         0.900
calibration error  0.050                             -
loss               0.310                             -

class      rows  precision  recall     F1
defective   205      0.850   0.740  0.790
ok          451          -   0.940  0.910

label \\ predicted  defective   ok
defective                152   53
ok                        27  424

phase  seconds
start     14.0
train    201.3"""
    )


@pytest.mark.parametrize(
    "classes",
    [
        ["a", "b"],
        [f"class {i}" for i in range(8)],
        [f"a class with a name much longer than any column number {i}" for i in range(12)],
        ["太陽電池" * 12, "セル" * 30, "ok"],
        [f"{i}" for i in range(20)],
        [f"n{i:08d}" for i in range(1000)],
    ],
)
def test_fits_100_columns_and_stays_aligned(classes: list[str]) -> None:
    page = render(evaluation(classes), seconds={"train": 12.0}, beside={"x" * 99: {"accuracy": 0.5}, "b": {}})
    assert max(map(columns, page.split("\n"))) <= 100
    per_class = page.split("\n\n")[2].split("\n")
    rows = [line for line in per_class if not line.startswith("(")]
    assert len({columns(line) for line in rows}) == 1


def test_long_names_stay_apart() -> None:
    page = render(
        evaluation(
            [
                "the same forty characters at the start, then 1",
                "the same forty characters at the start, then 2",
            ]
        )
    )
    assert "then 1" in page
    assert "then 2" in page


def test_many_classes_show_the_worst_and_the_frequent_confusions() -> None:
    result = evaluation([f"n{i:04d}" for i in range(50)], rows=3000)
    _, _, per_class, confusion = render(result).split("\n\n")
    scores = sorted(row["f1"] for row in result["per_class"])
    shown = [float(line.split()[-1]) for line in per_class.split("\n")[1:21]]
    assert shown == [pytest.approx(score, abs=6e-4) for score in scores[:20]]
    assert per_class.endswith("(the 20 of 50 classes with the lowest F1)")
    matrix = np.array(result["confusion"])
    np.fill_diagonal(matrix, 0)
    assert int(confusion.split("\n")[1].split()[-1]) == matrix.max()
    assert confusion.endswith(f"(the 20 most frequent of {(matrix > 0).sum()} confusions)")


def test_a_wide_matrix_without_confusions_says_so() -> None:
    result = evaluation([f"n{i}" for i in range(30)])
    result["confusion"] = np.diag([5] * 30).tolist()
    assert render(result).endswith("no confusions")


def test_names_cannot_drive_the_terminal() -> None:
    page = render(evaluation(["\x1b[2Jcleared", "two\nlines"]))
    assert "\x1b" not in page
    assert "two?lines" in page
