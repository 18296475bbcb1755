from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from raycnn.searching.report import render


def row(id: str, accuracy: float | None, config: dict[str, Any], **kept: Any) -> dict[str, Any]:
    facts = {"status": "finished", "epochs": 5.0, "seconds": 12.34, "cost": None, "reason": None, "stage": "search"}
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return {"id": id, "config": config, "metrics": metrics, **(facts | kept)}


def level(value: str, best: float) -> dict[str, Any]:
    return {"value": value, "num_trials": 2, "best": best, "median": best - 0.1, "seconds": 8.0}


def result(trials: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"run": "solar", "metric": "accuracy", "mode": "max", "trials": trials, "seconds": 143.2} | more


GRID = [
    row("0000", 0.8, {"optim.lr": 0.01, "model.unfreeze": 0}, cost=0.01),
    row("0001", 0.8765, {"optim.lr": 0.001, "model.unfreeze": 2}, cost=0.02),
    row("0002", 0.5, {"optim.lr": 1e-5, "model.unfreeze": 0}, status="stopped", epochs=1.0, reason="asha", cost=0.0),
    row("0003", None, {"optim.lr": 0.1, "model.unfreeze": 2}, status="failed", epochs=0.0, reason="NaN", cost=0.0),
    row("c001", 0.9, {"optim.lr": 0.001, "model.unfreeze": 2, "train.seed": 1}, stage="confirm", cost=0.02),
]
SAME = {"ids": [], "mean": 0.876, "sd": 0.0041, "stderr": 0.002, "num_seeds": 3, "seconds": 12.0}


def test_the_whole_page() -> None:
    page = render(
        result(
            GRID,
            best={
                "id": "c001",
                "config": {"optim.lr": 0.001, "model.unfreeze": 2},
                "metrics": {"accuracy": 0.9},
                "checkpoint": "s3://solar",
                "yaml": "run: {name: solar}\n",
            },
            by_depth=[level("0", 0.8), level("2", 0.9)],
            by_learning_rate=[level("1e-05 to 3e-05", 0.5), level("0.001 to 0.003", 0.9), level("0.01 to 0.03", 0.8)],
            importance={"optim.lr": 0.416, "model.unfreeze": 0.0},
            confirm=[
                SAME | {"config": {"optim.lr": 0.001, "model.unfreeze": 2}, "reason": None, "chosen": True},
                SAME | {"config": {"optim.lr": 0.01, "model.unfreeze": 0}, "reason": "c4 failed: NaN", "chosen": False},
            ],
            test={"metrics": {"accuracy": 0.871, "accuracy_ci95": [0.85, 0.89]}},
            against_former={
                "difference": 0.034,
                "ci95": (0.021, 0.047),
                "p_value": 4.8e-7,
                "gained": 22,
                "lost": 0,
                "num_rows": 656,
                "verdict": "better",
            },
            prefix={
                "passes": 7,
                "trial_epochs": 24,
                "cuts": [
                    {"depth": 0, "choice": "activations", "bytes_per_image": 5120, "seconds_per_image": 0.0065},
                    {"depth": 2, "choice": "share"},
                ],
                "cached_bytes": 12345678,
                "seconds": 21.3,
                "seconds_saved": 103.2,
            },
            files={"run": "s3://solar/runs/solar", "trials": "s3://solar/runs/solar/search/trials"},
        )
    )
    assert (
        page
        == """\
solar: 4 trials in 143 s (2 finished, 1 stopped, 1 failed); the trials alone cost 0.05
best: trial c001, accuracy 0.900 on the validation rows: optim.lr 0.001, model.unfreeze 2

trial     lr  unfreeze  accuracy  epochs  seconds   cost
0001   0.001         2     0.876       5     12.3  0.020
0000    0.01         0     0.800       5     12.3  0.010
0002   1e-05         0     0.500       1     12.3  0.000  stopped
0003     0.1         2         -       0     12.3  0.000   failed

depth  trials   best  median  seconds    learning rate   trials   best  median  seconds
0           2  0.800   0.700      8.0    1e-05 to 3e-05       2  0.500   0.400      8.0
2           2  0.900   0.800      8.0    0.001 to 0.003       2  0.900   0.800      8.0
                                         0.01 to 0.03         2  0.800   0.700      8.0

what mattered   explains alone
optim.lr                   42%
model.unfreeze              0%

stopped after 1 epoch, asha: 0002
failed after 0 epochs, NaN: 0003

trained again     lr  unfreeze  accuracy   ± sd  seeds  seconds
chosen         0.001         2     0.876  0.004      3     12.0
out             0.01         0     0.876  0.004      3     12.0
(out: c4 failed: NaN)

the chosen one on the test split
metric    value   95 % interval
accuracy  0.871  0.850 to 0.890

against the former best: better; accuracy +0.034 (95 % interval +0.021 to +0.047, McNemar p
  4.8e-07), 22 rows gained and 0 lost of 656

shared: 7 passes over the images for 24 epochs of trials, 21.3 s, 103.2 s saved; 12.3 MB of
  activations kept
depth        reuse  KB per image  ms per image
0      activations          5.12          6.50
2            share             -             -

run     s3://solar/runs/solar
trials  s3://solar/runs/solar/search/trials

the best configuration

run: {name: solar}"""
    )


def test_a_search_of_failures_says_so() -> None:
    page = render(result([row("0000", None, {"optim.lr": 1.0}, status="failed", epochs=0.0)], best=None))
    assert page.split("\n")[:2] == ["solar: 1 trial in 143 s (1 failed)", "no trial has a finite accuracy"]
    assert page.endswith("failed after 0 epochs, no reason known: 0000")


def test_the_best_twenty_are_shown_and_failures_come_last() -> None:
    trials = [row(f"{i:04d}", i / 100, {"optim.lr": 0.1}, status="failed" if i > 55 else "finished") for i in range(60)]
    page = render(result(trials, best=None))
    table = page.split("\n\n")[1].split("\n")
    assert [line.split()[0] for line in table[1:-1]] == [f"{i:04d}" for i in range(55, 35, -1)]
    assert table[-1] == "(the best 20 of 60 trials)"


def test_a_loss_is_ranked_from_below() -> None:
    trials = [row(str(i), None, {}) | {"metrics": {"loss": loss}} for i, loss in enumerate([0.5, 0.3, None, 0.4])]
    table = render(result(trials, best=None, metric="loss", mode="min")).split("\n\n")[1].split("\n")
    assert [line.split()[0] for line in table[1:]] == ["1", "3", "0", "2"]


def test_equal_last_names_are_told_apart() -> None:
    page = render(result([row("0", 0.5, {"model.name": "a", "optim.name": "sgd", "optim.lr": 0.1})], best=None))
    assert page.split("\n\n")[1].split("\n")[0].split()[:4] == ["trial", "model.name", "optim.name", "lr"]


def test_parameters_without_room_are_named() -> None:
    config = {f"section{i}.parameter_number_{i}": "a long value" for i in range(30)}
    page = render(result([row("0", 0.5, config)], best=None))
    note = " ".join(page.split("\n\n")[1].split("\n")[2:])
    shown = page.split("\n\n")[1].split("\n")[0]
    assert all((f"parameter_number_{i}" in shown) != (f"section{i}.parameter_number_{i}" in note) for i in range(9))
    assert "section29.parameter_number_29" in note
    assert "parameter_number_0" in shown


@pytest.mark.parametrize("name", ["x" * 60, "太陽電池" * 20, "a\x1b[31mred\nline"])
def test_fits_100_columns_whatever_the_names_are(name: str) -> None:
    config: dict[str, Any] = {f"section.parameter_number_{i}": name for i in range(8)} | {"optim.lr": 1e-5}
    levels = [level(f"{name}{i}", 0.5) for i in range(3)]
    page = render(
        result(
            [row(f"{i}", 0.5, config, status="failed", reason="a\x1b[31m reason " * 30) for i in range(40)],
            by_depth=levels,
            by_learning_rate=levels,
            importance=dict.fromkeys(config, 0.1),
            confirm=[SAME | {"config": config, "reason": None, "chosen": False}],
        )
    )
    wide = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in page.split("\n")]
    assert max(wide) <= 100
    assert "\x1b" not in page
