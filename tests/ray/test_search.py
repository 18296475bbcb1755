"""A search over a small network: what it finds, that it changes no bit, and that it goes on from where it was."""

from __future__ import annotations

import json
import threading

import pytest

import raycnn
from raycnn.errors import CheckpointError
from raycnn.searching import records
from raycnn.storage import open_store
from raycnn.storage.lease import read_lease
from raycnn.training import checkpoint
from tests.support.packs import kill_a_pack
from tests.support.runs import final_hashes

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(source, storage, name="search", **changes):
    config = {
        "run": {"name": name, "storage": str(storage)},
        "data": {"source": str(source), "val_fraction": 0.15, "test_fraction": 0.15, "stratify": True},
        "model": {"name": "timm/test_efficientnet", "weights": "none", "batchnorm": "local"},
        "augment": {"crop_scale": [0.8, 1.0]},
        "optim": {"lr": 0.005, "warmup_epochs": 0.5},
        "train": {"epochs": 2, "global_batch": 32, "chunk": 16, "checkpoint_every": 7, "log_every": 3},
        "search": {"space": {"model.unfreeze": {"grid": [0, 1, 2]}}, "confirm": [0, 0], "reuse": "share"},
    }
    config["data"]["image_size"] = 32
    config["cache"] = {"folder": str(storage)}
    return raycnn.load_config(config, changes)


@pytest.fixture(scope="module")
def searched(local_ray, digits, tmp_path_factory):
    storage = tmp_path_factory.mktemp("searched")
    config = settings(digits, storage)
    return config, raycnn.search(config)


def test_trials_of_a_pack_end_with_the_same_bits_as_each_alone(searched):
    config, _ = searched
    root = open_store(config.run.storage)
    for number, depth in enumerate((0, 1, 2)):
        alone = raycnn.load_config(config, {"run.name": f"alone-{depth}", "model.unfreeze": depth})
        raycnn.train(alone)
        packed = root.child(f"search/search/trials/{number:04d}")
        assert final_hashes(packed) == final_hashes(root.child(f"alone-{depth}"))


@pytest.mark.parametrize("reuse", ["activations", pytest.param("pixels", marks=pytest.mark.slow)])
def test_what_is_kept_changes_no_bit(reuse, searched, tmp_path):
    shared, _ = searched
    changes = {"run.name": reuse, "search.reuse": reuse, "cache.folder": str(tmp_path)}
    kept = raycnn.search(raycnn.load_config(shared, changes))
    assert {cut["choice"] for cut in kept["prefix"]["cuts"]} == {reuse}
    assert kept["prefix"]["trial_epochs"] > 6
    if reuse == "activations":  # 18 steps and 4 chunks for three trials in two packs
        assert kept["prefix"]["passes"] == round((18 * 32 + 4 * 16) / 280, 3)
    root = open_store(shared.run.storage)
    for number in range(3):
        trial = f"search/trials/{number:04d}"
        assert final_hashes(root.child(f"{reuse}/{trial}")) == final_hashes(root.child(f"search/{trial}"))


@pytest.mark.slow
def test_a_pack_over_two_ranks_changes_no_bit(digits, tmp_path):
    changes = {"train.workers": 2, "search.space": {"model.unfreeze": {"grid": ["conv_head", 2]}}}
    changes["search.reuse"] = "activations"
    config = settings(digits, tmp_path, "wide", **changes)
    found = raycnn.search(config)
    assert [each["status"] for each in found["trials"]] == ["finished", "finished"]
    root = open_store(str(tmp_path))
    for number, depth in enumerate(("conv_head", 2)):
        raycnn.train(raycnn.load_config(config, {"run.name": f"alone-{depth}", "model.unfreeze": depth}))
        assert final_hashes(root.child(f"wide/search/trials/{number:04d}")) == final_hashes(
            root.child(f"alone-{depth}")
        )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_trials_of_a_pack_that_is_killed_go_on_from_their_commits(workers, digits, tmp_path):
    changes = {"train.workers": workers, "train.epochs": 8, "search.reuse": "share"}
    whole = settings(digits, tmp_path, "whole", **changes)
    raycnn.search(whole)
    root = open_store(str(tmp_path))
    victim = threading.Thread(target=kill_a_pack, args=(root.child("killed"),))
    victim.start()
    found = raycnn.search(raycnn.load_config(whole, {"run.name": "killed"}))
    victim.join()
    assert [each["status"] for each in found["trials"]] == ["finished"] * 3
    for number in range(3):
        trial = f"search/trials/{number:04d}"
        assert final_hashes(root.child(f"killed/{trial}")) == final_hashes(root.child(f"whole/{trial}"))
        assert read_lease(root.child(f"killed/{trial}")).epoch > 1


def test_the_answer(searched):
    config, found = searched
    trials = found["trials"]
    assert [(each["id"], each["depth"], each["status"]) for each in trials] == [
        ("0000", "0", "finished"), ("0001", "1", "finished"), ("0002", "2", "finished")
    ]  # fmt: skip
    best = max(trials, key=lambda each: each["metrics"]["accuracy"])
    assert found["best"]["metrics"]["accuracy"] == best["metrics"]["accuracy"]
    evaluation = raycnn.evaluate(config)  # the winner is the run's own checkpoint
    assert evaluation["metrics"] == found["test"]["metrics"]
    run = json.loads(open_store(config.run.storage).get("search/run.json"))
    assert run["test_looks"] == 2
    again = raycnn.search(config)
    assert again == found


def test_another_space_under_the_same_name_and_another_verb_are_refused(searched):
    config, _ = searched
    with pytest.raises(CheckpointError, match="was started by `raycnn search`"):
        raycnn.train(config)


def test_another_space_under_the_same_name_is_refused_with_the_difference(searched):
    config, _ = searched
    with pytest.raises(CheckpointError, match=r"search\.space: .* -> "):
        raycnn.search(raycnn.load_config(config, {"search.space": {"optim.lr": {"grid": [1e-3]}}}))


RATES = {"optim.lr": {"grid": [0.01, 0.02, 1e-6, 1e30]}}


def test_losers_are_stopped_early_and_a_trial_that_diverges_fails_alone(digits, tmp_path):
    changes = {
        "search.space": RATES,
        "search.scheduler": "asha",
        "search.reduction": 2,
        "optim.warmup_epochs": 0,
        "train.epochs": 4,
        "model.name": "reference/lenet",
    }
    found = raycnn.search(settings(digits, tmp_path, **changes))
    by_rate = {each["config"]["optim.lr"]: each for each in found["trials"]}
    assert by_rate[1e30]["status"] == "failed"
    assert "NaN or Inf" in by_rate[1e30]["reason"]
    assert by_rate[1e-6]["status"] == "stopped"
    assert by_rate[1e-6]["evaluations"] < 4
    assert found["best"]["config"]["optim.lr"] in (0.01, 0.02)
    assert by_rate[found["best"]["config"]["optim.lr"]]["evaluations"] == 4


@pytest.mark.slow
def test_a_trial_that_waits_at_a_rung_ends_with_the_bits_of_one_alone(digits, tmp_path):
    changes = {
        "search.space": {"optim.lr": {"grid": [0.01, 1e-6]}},
        "search.scheduler": "asha",
        "search.concurrent": 1,
        "model.name": "reference/lenet",
    }
    config = settings(digits, tmp_path, **changes)
    found = raycnn.search(config)
    assert [(each["status"], each["evaluations"]) for each in found["trials"]] == [("finished", 2), ("stopped", 1)]
    raycnn.train(raycnn.load_config(config, {"run.name": "alone", "optim.lr": 0.01}))
    root = open_store(str(tmp_path))
    assert final_hashes(root.child("search/search/trials/0000")) == final_hashes(root.child("alone"))
    assert read_lease(root.child("search/search/trials/0000")).epoch == 2, "it left its pack and came back"
    first, second = records.read_all(root.child("search"))[0].evaluations
    assert second.seconds > 1.3 * first.seconds, "what it had cost counts on"


@pytest.mark.slow
def test_a_population_copies_winners_and_changes_them(digits, tmp_path):
    changes = {
        "search.space": {"optim.lr": {"loguniform": [1e-5, 3e-2]}},
        "search.trials": 4,
        "search.scheduler": "pbt",
        "model.name": "reference/lenet",
        "train.epochs": 4,
        "train.keep": 9,
    }
    config = settings(digits, tmp_path, **changes)
    raycnn.search(config)
    root = open_store(str(tmp_path)).child("search/search/trials")
    copies = []
    for trial in root.folders():
        store = root.child(trial)
        begun = read_lease(store)
        if begun.epoch > 1:  # it took over another's checkpoint, and committed it as its own
            copied = next(each for each in reversed(checkpoint.commits(store, begun)) if each.epoch > 1)
            copies.append(copied.manifest["files"]["weights.safetensors"]["sha256"])
    assert copies
    originals = {
        each.manifest["files"]["weights.safetensors"]["sha256"]
        for trial in root.folders()
        for each in checkpoint.commits(root.child(trial), None)
        if each.epoch == 1
    }
    assert set(copies) & originals


def test_a_budget_ends_a_search_with_what_it_has(digits, tmp_path):
    changes = {"search.budget_s": 0.001, "model.name": "reference/lenet"}
    found = raycnn.search(settings(digits, tmp_path, **changes))
    assert {each["status"] for each in found["trials"]} <= {"stopped"}
    assert all("budget" in each["reason"] for each in found["trials"])


@pytest.mark.slow
def test_the_best_are_confirmed_and_refitted_and_the_next_search_starts_from_them(digits, tmp_path):
    space = {"optim.lr": {"loguniform": [1e-3, 1e-2]}, "model.unfreeze": {"choice": [0, "all"]}}
    changes = {
        "search.space": space,
        "search.trials": 3,
        "search.confirm": [2, 2],
        "search.refit": True,
        "model.name": "reference/lenet",
    }
    config = settings(digits, tmp_path, "nightly-%H%M%S%f", **changes)
    first = raycnn.search(config)
    assert [row["num_seeds"] for row in first["confirm"]] == [2, 2]
    chosen = next(row for row in first["confirm"] if row["chosen"])
    assert first["best"]["config"] == chosen["config"]
    root = open_store(str(tmp_path))
    (name,) = [name for name in root.folders() if name.startswith("nightly")]
    refit = json.loads(root.get(f"{name}/search/refit/run.json"))
    rows = raycnn.data.manifest.read_index(root.child(f"{name}/search"), refit["index"])
    assert len(rows.rows("train")) == 340
    assert len(rows.rows("val")) == 0
    assert json.loads(root.get(f"{name}/run.json"))["test_looks"] == 1

    changes |= {"search.refit": False, "search.confirm": [0, 0], "search.trials": 1}
    second = raycnn.search(settings(digits, tmp_path, "nightly-%H%M%S%f", **changes))
    best_before = max(
        (each for each in first["trials"] if each["stage"] == "search"), key=lambda each: each["metrics"]["accuracy"]
    )
    assert second["trials"][0]["config"] == best_before["config"]
    assert second["against_former"]["run"] == name
    assert second["against_former"]["num_rows"] == 60
