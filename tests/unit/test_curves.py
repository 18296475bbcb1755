from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycnn.config import Config
from raycnn.data.plan import Plan
from raycnn.results.report import render_curves
from raycnn.training.curves import Point, advice, points_of

PLAN = Plan(num_rows=40, global_batch=10, seed=0)
FALLING = [Point(1, 0.7, 0.7), Point(2, 0.5, 0.5), Point(3, 0.4, 0.45)]
OVER = [Point(1, 0.7, 0.7), Point(2, 0.4, 0.5), Point(3, 0.2, 0.6)]


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    model = {"name": "reference/lenet", "weights": "none"}
    return {"run": {"name": "r", "storage": str(tmp_path)}, "data": {"source": "s"}, "model": model}


def test_points_are_evaluations_with_what_was_trained_since_the_last() -> None:
    lines = [
        {"step": 2, "loss": 0.8}, {"step": 4, "loss": 0.6}, {"step": 4, "val_loss": 0.7, "val_accuracy": 0.5},
        {"step": 4, "epoch": 1, "read": 0.5}, {"step": 6, "loss": None}, {"step": 8, "val_loss": None},
        {"step": 10, "loss": 0.2}, {"step": 12, "loss": 0.4}, {"step": 12, "val_loss": 0.5},
    ]  # fmt: skip
    found = points_of(map(json.dumps, lines), PLAN)
    assert found == [
        Point(1, pytest.approx(0.7), 0.7), Point(2, None, None), Point(3, pytest.approx(0.3), 0.5)
    ]  # fmt: skip
    assert [point.gap for point in found] == [pytest.approx(0), None, pytest.approx(0.2)]


def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_called_out(tree: dict[str, Any]) -> None:
    told = advice(OVER, Config.model_validate(tree))
    assert told is not None
    assert told.startswith(
        "overfitting: the validation loss was lowest at epoch 2 (0.5) and is 0.6, while the training"
    )
    assert "train.patience: 2" in told
    assert "model.unfreeze" in told


def test_advice_names_what_is_not_yet_used(tree: dict[str, Any]) -> None:
    used = tree | {
        "train": {"patience": 3}, "optim": {"weight_decay": 0.1}, "model": tree["model"] | {"unfreeze": 1},
        "augment": {"mixup": 0.2},
    }  # fmt: skip
    told = advice(OVER, Config.model_validate(used))
    assert told is not None
    assert told.endswith("try a lower optim.lr, more images")
    still = tree | {"augment": {"crop_scale": None, "hflip": 0}}
    assert "augment.crop_scale" in str(advice(OVER, Config.model_validate(still)))


@pytest.mark.parametrize(
    ("points", "told"),
    [
        (FALLING, "both losses still fell"),
        (FALLING[:2], None),
        ([*FALLING, Point(4, 0.39, 0.455)], None),  # as good as before
        (
            [Point(1, 0.7, 0.7), Point(2, 0.6, 0.5), Point(3, 0.8, 0.9)],
            None,
        ),  # it diverges: the training loss rises too
        ([*OVER[:2], Point(2.5, None, None), OVER[2]], "overfitting"),
    ],
)
def test_other_courses(tree: dict[str, Any], points: list[Point], told: str | None) -> None:
    found = advice(points, Config.model_validate(tree))
    assert found is None if told is None else str(found).startswith(told)


def test_many_epochs_are_shown_by_their_ends() -> None:
    curves = [{"epoch": float(n), "train_loss": 1 / n, "val_loss": None, "gap": None} for n in range(1, 30)]
    lines = render_curves(curves).split("\n")
    assert lines[0].split() == ["epoch", "training", "loss", "validation", "loss", "gap"]
    assert [line.split()[0] for line in lines[1:]] == [*"123456", "...", "24", "25", "26", "27", "28", "29"]
    assert lines[1].split() == ["1", "1.000", "-", "-"]
    assert render_curves([]) == ""
