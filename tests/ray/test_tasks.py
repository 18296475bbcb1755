"""Several labels, two classes and numbers, from a CSV manifest to predictions and back from the run's folder."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import raycnn
from raycnn.errors import CheckpointError, ConfigError
from raycnn.storage import open_store
from tests.support.runs import metrics

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise in which some of red, green and blue are bright; a manifest for each task."""
    folder, random = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    tables = {name: ["key,label"] for name in ("several", "two", "number")}
    for number, (colours, _) in enumerate(product(product((0, 1), repeat=3), range(24))):
        bright = random.uniform(0.6, 1.0, 3) * colours
        pixels = random.integers(0, 60, (32, 32, 3)) + 190 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
        names = ";".join(name for name, on in zip(("red", "green", "blue"), colours, strict=True) if on)
        tables["several"].append(f"{number:03}.png,{names}")
        tables["two"].append(f"{number:03}.png,{'warm' if colours[0] else 'cold'}")
        tables["number"].append(f"{number:03}.png,{round(1000 + 100 * bright[0])}")
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def settings(images, source, storage, **changes):
    config = {
        "run": {"name": source, "storage": str(storage)},
        "data": {"source": f"{images}/{source}.csv", "val_fraction": 0.2, "test_fraction": 0.2},
        "model": {"name": "reference/lenet", "weights": "none"},
        "augment": {"crop_scale": None},
        "optim": {"name": "adamw", "lr": 0.005},
        "train": {"epochs": 6, "global_batch": 24, "chunk": 16, "workers": 2, "exact": True},
    }
    return raycnn.load_config(config, changes)


def finished(config):
    """(result, evaluation, predictions by key)."""
    trained = raycnn.train(config)
    assert trained["status"] == "finished"
    found, predicted = raycnn.evaluate(config), raycnn.predict(config)
    table = pq.read_table(predicted["output"])
    assert predicted["unreadable"] == 0
    assert table.num_rows == found["rows"] > 20
    return trained, found, {row["key"]: row for row in table.to_pylist()}


def labels_of(config):
    lines = [line.partition(",") for line in Path(config.data.source).read_text().splitlines()[1:]]
    return {key: label for key, _, label in lines}


def network_of(config):
    return raycnn.load(f"{config.run.storage}/{config.run.name}")


def test_several_labels(images, tmp_path):
    config = settings(images, "several", tmp_path)
    trained, found, predicted = finished(config)
    assert found["task"] == "multi-label"
    assert trained["best"]["metrics"]["map"] == max(
        line["val_map"] for line in metrics(open_store(str(tmp_path / "several"))) if "val_map" in line
    )
    assert found["metrics"]["map"] > 0.9
    by_three = raycnn.evaluate(raycnn.load_config(config, {"train.workers": 3, "train.exact": False}))
    assert json.dumps(by_three) == json.dumps(found)
    assert raycnn.train(config)["resumed_from"] == trained["steps"]
    low, high = found["metrics"]["micro_f1_ci95"]
    assert low <= found["metrics"]["micro_f1"] <= high
    assert [row["class"] for row in found["per_class"]] == ["blue", "green", "red"]
    assert "confusion" not in found

    labels = labels_of(config)
    right = [sorted(filter(None, labels[key].split(";"))) == row["labels"] for key, row in predicted.items()]
    assert np.mean(right) == pytest.approx(found["metrics"]["subset_accuracy_tuned"])
    key, row = next(iter(predicted.items()))
    by_hand = network_of(config).predict(images / key)
    assert by_hand == pytest.approx(dict(zip(("blue", "green", "red"), row["probabilities"], strict=True)), abs=1e-6)


@pytest.mark.slow
def test_numbers(images, tmp_path):
    config = settings(images, "number", tmp_path, **{"data.task": "regression", "loss.name": "huber"})
    trained, found, predicted = finished(config)
    assert found["task"] == "regression"
    labels = {key: float(label) for key, label in labels_of(config).items()}
    errors = np.array([row["value"] - labels[key] for key, row in predicted.items()])
    assert found["metrics"]["mae"] == pytest.approx(np.abs(errors).mean())
    assert found["metrics"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert found["metrics"]["r2"] > 0.8  # though the numbers are around a thousand
    key, row = next(iter(predicted.items()))
    assert network_of(config).predict(images / key) == {"value": pytest.approx(row["value"], rel=1e-6)}
    assert trained["best"]["metrics"]["rmse"] == min(
        line["val_rmse"] for line in metrics(open_store(str(tmp_path / "number"))) if "val_rmse" in line
    )
    with pytest.raises(CheckpointError, match=r"data\.task: regression -> auto"):
        raycnn.train(settings(images, "number", tmp_path))


@pytest.mark.slow
def test_two_classes_by_one_output(images, tmp_path):
    config = settings(images, "two", tmp_path, **{"data.task": "binary", "train.metric": "auroc", "train.epochs": 4})
    _, found, predicted = finished(config)
    assert found["metrics"]["auroc"] > 0.9
    labels = labels_of(config)
    right = [labels[key] == row["label"] for key, row in predicted.items()]
    assert np.mean(right) == pytest.approx(found["metrics"]["accuracy_tuned"])
    assert network_of(config).network.head.output.out_features == 1
    assert {"ece_calibrated", "loss_calibrated", "accuracy_tuned", "f1_tuned"} <= found["metrics"].keys()
    (threshold,) = found["calibration"]["thresholds"].values()
    by_threshold = ["warm" if row["probabilities"][1] > threshold else "cold" for row in predicted.values()]
    assert by_threshold == [row["label"] for row in predicted.values()]
    key, row = next(iter(predicted.items()))
    assert network_of(config).predict(images / key)["warm"] == pytest.approx(row["probabilities"][1], abs=1e-6)
    assert sum(map(sum, found["confusion"])) == found["rows"]


def test_a_search_of_numbers_goes_down(images, tmp_path):
    changes = {
        "data.task": "regression",
        "train.workers": 1,
        "train.exact": False,
        "train.epochs": 2,
        "search.space": {"optim.lr": {"grid": [1e-5, 5e-3]}, "loss.name": {"grid": ["mse"]}},
        "search.confirm": [0, 0],
    }
    found = raycnn.search(settings(images, "number", tmp_path, **changes))
    values = {trial["config"]["optim.lr"]: trial["metrics"]["rmse"] for trial in found["trials"]}
    assert values[5e-3] < values[1e-5]
    assert found["metric"] == "rmse"
    assert found["best"]["config"]["optim.lr"] == 5e-3
    assert found["test"]["metrics"]["rmse"] > 0


@pytest.mark.parametrize("task", [pytest.param("auto", marks=pytest.mark.slow), "binary"])
def test_without_validation_rows_all_but_the_test_rows_train(task, images, tmp_path):
    changes = {"data.val_fraction": 0, "data.task": task, "train.epochs": 3, "train.exact": False}
    config = settings(images, "two", tmp_path, **changes)
    trained, found, _ = finished(config)
    store = open_store(f"{tmp_path}/two")
    rows = 192 - found["rows"]
    assert trained["steps"] == round(3 * rows / 24)
    assert trained["checkpoint"].startswith(f"step-{trained['steps']:08d}")
    assert found["step"] == trained["steps"]
    assert found["metrics"]["accuracy"] > 0.9
    assert {line["val_loss"] for line in metrics(store) if "val_loss" in line} == {None}
    for where, decided in (("train.patience", 2), ("optim.schedule", "plateau")):
        with pytest.raises(ConfigError, match="no validation rows to decide by") as refused:
            raycnn.train(settings(images, "two", tmp_path / "other", **changes, **{where: decided}))
        assert refused.value.where == where
    space = {"search.space": {"optim.lr": {"grid": [1e-3, 1e-2]}}, "run.name": "searched"}
    with pytest.raises(ConfigError, match="a search chooses by validation rows"):
        raycnn.search(settings(images, "two", tmp_path, **changes, **space))
