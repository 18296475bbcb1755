import json
import threading
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

import raycnn
from raycnn.errors import CheckpointError, DivergedError
from raycnn.storage import open_store
from raycnn.training.serialize import decode_weights
from raycnn.training.start import best_weights
from tests.support.runs import final_hashes, kill_one_worker, metrics

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(source, storage, name="run", **changes):
    config = {
        "run": {"name": name, "storage": str(storage)},
        "data": {"source": str(source), "val_fraction": 0.15, "test_fraction": 0.15, "stratify": True},
        "model": {"name": "reference/lenet", "weights": "none"},
        "augment": {"crop_scale": [0.8, 1.0], "hflip": 0.0},
        "optim": {"name": "adamw", "lr": 0.005, "warmup_epochs": 0.5},
        "train": {"epochs": 4, "global_batch": 32, "chunk": 16, "checkpoint_every": 7, "log_every": 3},
    }
    return raycnn.load_config(config, changes)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Where the module's first run lies, for the tests that need a finished one."""
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def run(local_ray, digits, storage):
    """(config, result) of a run on two workers."""
    config = settings(digits, storage, **{"train.workers": 2, "train.epochs": 10})
    return config, raycnn.train(config)


def test_train_evaluate_predict_load(run, digits, storage):
    config, trained = run
    assert trained["status"] == "finished"
    assert trained["epochs"] >= 10
    assert trained["resumed_from"] is None
    assert trained["best"]["metrics"]["accuracy"] > 0.8

    evaluation = raycnn.evaluate(config)
    assert evaluation["rows"] == 60
    assert evaluation["step"] == trained["best"]["step"]
    assert evaluation["metrics"]["accuracy"] > 0.8
    assert sum(map(sum, evaluation["confusion"])) == 60

    predicted = raycnn.predict(config)
    table = pq.read_table(predicted["output"])
    assert predicted["rows"] == table.num_rows == 60
    right = [
        key.split("/")[0] == label
        for key, label in zip(*table.select(["key", "label"]).to_pydict().values(), strict=True)
    ]
    assert sum(right) / 60 == pytest.approx(evaluation["metrics"]["accuracy"])

    network = raycnn.load(f"{storage}/run")
    key = table["key"][0].as_py()
    by_hand = network.predict(digits / key)
    stored = dict(zip(network.classes, table["probabilities"][0].as_py(), strict=True))
    assert by_hand == pytest.approx(stored, abs=1e-6)

    again = raycnn.train(config)
    assert again["resumed_from"] == again["steps"] == trained["steps"]
    assert raycnn.runs(str(storage))[0]["status"] == "idle"


def test_every_epoch_says_what_its_time_went_to(run, storage):
    config, _ = run
    lines = [json.loads(line) for line in open_store(str(storage / "run")).get("metrics.jsonl").splitlines()]
    told = [line for line in lines if "verdict" in line]
    assert [line["epoch"] for line in told] == list(range(1, int(config.train.epochs) + 1))
    for line in told:
        assert sum(line["shares"].values()) == pytest.approx(1, abs=0.01)
        assert line["shares"]["decode"] + line["shares"]["fetch"] + line["shares"]["wait"] > 0


def test_evaluation_has_the_same_bits_on_1_2_and_3_workers(run, storage):
    config, trained = run
    found = [
        raycnn.evaluate(
            raycnn.load_config(config, {"train.workers": n, "train.global_batch": 6 * n, "evaluate.split": "val"})
        )
        for n in (1, 2, 3)
    ]
    assert json.dumps(found[0]) == json.dumps(found[1]) == json.dumps(found[2])
    lines = metrics(open_store(str(storage / "run")))
    in_training = next(line for line in lines if line["step"] == trained["best"]["step"] and "val_loss" in line)
    assert in_training["val_loss"] == found[0]["metrics"]["loss"]


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_worker_changes_no_bit_of_the_result(world, digits, tmp_path):
    whole = settings(digits, tmp_path, "whole", **{"train.workers": world})
    raycnn.train(whole)
    killed = raycnn.load_config(whole, {"run.name": "killed"})
    store = open_store(str(tmp_path / "killed"))
    victim = threading.Thread(target=kill_one_worker, args=(store,))
    victim.start()
    raycnn.train(killed)
    victim.join()
    assert final_hashes(store) == final_hashes(open_store(str(tmp_path / "whole")))
    epochs = {int(name[-3:]) for name in store.folders("checkpoints")}
    assert max(epochs) > 2  # the group was started twice


def test_a_diverging_run_ends_with_code_4_and_keeps_its_last_commit(digits, tmp_path):
    config = settings(
        digits,
        tmp_path,
        **{"optim.lr": 1e30, "optim.schedule": "constant", "optim.warmup_epochs": 0, "train.checkpoint_every": 1},
    )
    with pytest.raises(DivergedError, match=r"step \d+, learning rate 1e\+30"):
        raycnn.train(config)
    store = open_store(str(tmp_path / "run"))
    newest = raycnn.training.checkpoint.latest(store, None)
    weights = commit_weights(store, newest.step)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_other_settings_under_the_same_name_are_refused_with_the_difference(run):
    config, trained = run
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.005 -> 0.2"):
        raycnn.train(raycnn.load_config(config, {"optim.lr": 0.2}))
    more = raycnn.train(raycnn.load_config(config, {"train.epochs": 11, "train.workers": 1}))
    assert more["epochs"] >= 11
    assert more["resumed_from"] == trained["steps"]


def test_a_run_can_start_from_another_runs_best_weights(run, digits, storage):
    said = []
    child = settings(digits, storage, "child", **{"train.epochs": 1, "model.weights": "run:run", "train.keep": 9})
    raycnn.train(child, show=lambda progress, lines: said.extend(lines))
    assert any("run:run" in line for line in said)
    parent = decode_weights(best_weights(open_store(f"{storage}/run")))
    first = commit_weights(open_store(f"{storage}/child"), 0)
    assert all(parent[name].equal(first[name]) for name in parent if not name.startswith("head"))
    assert json.loads(open_store(f"{storage}/child").get("run.json"))["parent"]["run"] == "run"


def commit_weights(store, step):
    commit = next(commit for commit in raycnn.training.checkpoint.commits(store, None) if commit.step == step)
    return decode_weights(raycnn.training.checkpoint.verified(store, commit)["weights.safetensors"])


def test_what_the_cache_keeps_changes_no_bit_and_saves_reading_it_again(digits, tmp_path):
    still = {"augment.crop_scale": None, "train.epochs": 3, "train.workers": 2, "cache.folder": str(tmp_path / "cache")}
    hashes = {}
    for reuse in ("none", "activations"):
        raycnn.train(settings(digits, tmp_path, reuse, **still, **{"train.reuse": reuse, "model.unfreeze": 1}))
        store = open_store(str(tmp_path / reuse))
        hashes[reuse] = final_hashes(store)
        lines = [json.loads(line) for line in store.get("metrics.jsonl").splitlines()]
        cached = [line["cached"] for line in lines if "cached" in line]
        assert cached == ([0, 0, 0] if reuse == "none" else [0, 1, 1])
    assert hashes["none"]["metrics"] == hashes["activations"]["metrics"]
    assert hashes["none"]["weights.safetensors"] == hashes["activations"]["weights.safetensors"]


def test_phases_train_what_their_depth_says(digits, tmp_path):
    phases = [{"depth": 0, "epochs": 1}, {"depth": "all", "epochs": 1}]
    changes = {
        "train.epochs": 2,
        "model.unfreeze": phases,
        "train.workers": 2,
        "train.keep": 9,
        "train.checkpoint_every": 1,
    }
    config = settings(digits, tmp_path, **changes)
    trained = raycnn.train(config)
    store = open_store(str(tmp_path / "run"))
    steps = sorted(commit.step for commit in raycnn.training.checkpoint.commits(store, None))[-9:]
    weights = {step: commit_weights(store, step) for step in steps}
    boundary = raycnn.data.plan.Plan(280, 32, 0).steps(1)
    for before, after in pairwise(steps):
        first = next(iter(weights[before]))
        moved = not weights[before][first].equal(weights[after][first])
        assert moved == (before >= boundary)
    assert trained["steps"] == steps[-1]
