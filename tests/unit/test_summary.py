from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml

from raycnn.config import Config, load_config
from raycnn.errors import ConfigError
from raycnn.searching.answer import choose, confirmed
from raycnn.searching.records import Evaluation, TrialRecord
from raycnn.searching.summary import confirm_rows, overview, trial_rows, yaml_of

CONFIG = load_config(
    {
        "run": {"name": "solar", "storage": "s3://solar/runs"},
        "data": {"source": "s3://solar/elpv.csv"},
        "model": {"name": "torchvision/resnet18", "unfreeze": 1},
        "train": {"epochs": 5},
        "search": {"space": {"optim.lr": {"loguniform": [1e-5, 0.1]}}, "price_per_hour": 3.6},
    }
)


def trial(id: str, accuracies: list[float | None], **kept: Any) -> TrialRecord:
    evaluations = tuple(
        Evaluation(10 * i, float(i), 100.0 * i, {"accuracy": value, "auroc": math.nan})
        for i, value in enumerate(accuracies, 1)
    )
    return TrialRecord(
        id, **{"values": {"optim.lr": 0.01}, "depth": "1", "status": "finished"} | kept, evaluations=evaluations
    )


def test_the_yaml_is_what_the_user_wrote_with_the_chosen_values() -> None:
    text = yaml_of(CONFIG, {"optim.lr": 1e-05, "model.unfreeze": "all"})
    assert yaml.safe_load(text) == {
        "run": {"name": "solar", "storage": "s3://solar/runs"},
        "data": {"source": "s3://solar/elpv.csv"},
        "model": {"name": "torchvision/resnet18", "unfreeze": "all"},
        "train": {"epochs": 5},
        "optim": {"lr": 1e-05},
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optim.lr": 0.00123456789012345, "optim.weight_decay": 0, "optim.nesterov": True, "optim.name": "sgd"},
        {"model.unfreeze": [{"depth": 0, "epochs": 1.5}, {"depth": "all", "epochs": 2}], "augment.crop_scale": None},
        {"augment.crop_scale": (0.08, 1.0), "data.image_size": 96},
    ],
)
def test_the_yaml_pasted_is_the_configuration(values: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(yaml_of(CONFIG, values))
    plain = CONFIG.model_dump(mode="json", exclude_unset=True, exclude={"search"})
    assert load_config(path) == load_config(plain, values)


def test_a_value_that_does_not_fit_is_refused_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        yaml_of(CONFIG, {"optim.lr": -1})


def test_rows_hold_the_best_metrics_and_the_whole_cost() -> None:
    rows = trial_rows(
        [
            trial("0000", [0.5, 0.9, 0.7]),
            trial("0001", [], status="failed", reason="out of memory", stage="confirm"),
        ],
        CONFIG,
    )
    assert rows == [
        {
            "id": "0000",
            "config": {"optim.lr": 0.01},
            "status": "finished",
            "metrics": {"accuracy": 0.9, "auroc": None},
            "epochs": 3.0,
            "seconds": 300.0,
            "cost": pytest.approx(0.3),
            "reason": None,
            "stage": "search",
            "depth": "1",
            "evaluations": 3,
        },
        {
            "id": "0001",
            "config": {"optim.lr": 0.01},
            "status": "failed",
            "metrics": {},
            "epochs": 0.0,
            "seconds": 0.0,
            "cost": 0.0,
            "reason": "out of memory",
            "stage": "confirm",
            "depth": "1",
            "evaluations": 0,
        },
    ]


def test_without_a_price_there_is_no_cost() -> None:
    config = Config.model_validate(CONFIG.model_dump(exclude_unset=True) | {"search": {}})
    assert trial_rows([trial("0", [0.5])], config)[0]["cost"] is None


def test_the_overview_leaves_confirming_trials_to_the_confirmation() -> None:
    records = [trial(f"{i}", [0.1 * i], depth=str(i % 2)) for i in range(8)]
    again = [trial("c", [math.inf, 0.99], stage="confirm")]
    told = overview([*records, *again], CONFIG)
    assert [row["id"] for row in told["trials"]] == ["0", "1", "2", "3", "4", "5", "6", "7", "c"]
    assert [(level["value"], level["num_trials"]) for level in told["by_depth"]] == [("0", 4), ("1", 4)]
    assert told["by_learning_rate"][0]["best"] == pytest.approx(0.7)
    assert told["importance"] == {"optim.lr": 0}
    assert (told["run"], told["metric"], told["mode"]) == ("solar", "accuracy", "max")
    json.dumps(told, allow_nan=False)


def test_confirm_rows_mark_the_chosen_one() -> None:
    records = [
        trial(f"{lr}-{seed}", [accuracy], values={"optim.lr": lr, "train.seed": seed}, stage="confirm")
        for lr, accuracy in ((0.1, 0.8), (0.01, 0.9))
        for seed in (1, 2)
    ]
    found = confirmed(records, "accuracy", "max")
    rows = confirm_rows(found, choose(found, "max"))
    assert [row["chosen"] for row in rows] == [False, True]
    assert rows[1] == {
        "config": {"optim.lr": 0.01},
        "ids": ("0.01-1", "0.01-2"),
        "mean": 0.9,
        "sd": 0.0,
        "stderr": 0.0,
        "num_seeds": 2,
        "seconds": 100.0,
        "reason": None,
        "chosen": True,
    }
    assert not any(row["chosen"] for row in confirm_rows(found, None))
