"""A student learns what its teacher knows, and ends with the same bits wherever it was killed."""

from __future__ import annotations

import json
import random
import threading

import pytest

import raycnn
from raycnn.errors import CheckpointError
from raycnn.storage import open_store
from tests.ray.test_train import settings
from tests.support.runs import final_hashes, kill_one_worker

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("distill")


@pytest.fixture(scope="module")
def teacher(local_ray, digits, storage):
    """A run of the right labels, at another size and in other colours than its students."""
    own = {"data.image_size": 40, "data.mean": [0.3, 0.3, 0.3], "train.epochs": 12}
    return raycnn.train(settings(digits, storage, "teacher", **own))


def student(source, storage, name, **changes):
    return settings(source, storage, name, **{"loss.distill.teacher": "run:teacher", **changes})


@pytest.fixture(scope="module")
def mislabelled(digits, tmp_path_factory):
    """A manifest in which no training row has a right label but by chance; all others have."""
    draw, lines = random.Random(0), ["key,label,split"]
    for path in sorted(digits.glob("*/*.png")):
        split = draw.choice(("train", "train", "val", "test"))
        label = f"digit-{draw.randrange(10)}" if split == "train" else path.parent.name
        lines.append(f"{path.relative_to(digits)},{label},{split}")
    manifest = digits / f"{tmp_path_factory.mktemp('manifest').name}.csv"
    manifest.write_text("\n".join(lines) + "\n")
    yield manifest
    manifest.unlink()


def test_a_student_that_sees_no_right_label_learns_from_its_teacher(teacher, mislabelled, storage):
    taught = {"data.stratify": False, "train.epochs": 12, "loss.distill.weight": 1.0, "loss.distill.temperature": 3}
    found = [
        raycnn.train(student(mislabelled, storage, name, **{**taught, **more}))["best"]["metrics"]["accuracy"]
        for name, more in (("taught", {}), ("alone", {"loss.distill.teacher": "none"}))
    ]
    assert found[0] > 0.7
    assert found[1] < 0.3
    pinned = json.loads(open_store(str(storage / "taught")).get("run.json"))["teacher"]
    assert pinned["run"] == "teacher"


@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_worker_changes_no_bit(world, teacher, digits, storage):
    changes = {"train.workers": world, "augment.mixup": 0.2, "train.exact": True, "train.epochs": 12}
    whole = student(digits, storage, f"whole-{world}", **changes)
    raycnn.train(whole)
    store = open_store(str(storage / f"killed-{world}"))
    victim = threading.Thread(target=kill_one_worker, args=(store,))
    victim.start()
    raycnn.train(raycnn.load_config(whole, {"run.name": f"killed-{world}"}))
    victim.join()
    assert final_hashes(store) == final_hashes(open_store(str(storage / f"whole-{world}")))
    assert max(int(name[-3:]) for name in store.folders("checkpoints")) > 2  # the group was started twice
    if world == 2:  # and train.exact holds
        weights = [final_hashes(open_store(str(storage / f"whole-{n}")))["weights.safetensors"] for n in (1, 2)]
        assert weights[0] == weights[1]


def test_trials_of_a_search_are_taught_as_each_alone(teacher, digits, storage):
    space = {"model.unfreeze": {"grid": [0, 1]}, "loss.distill.weight": {"grid": [0.5]}}
    still = {"augment.crop_scale": None, "train.epochs": 3, "cache.folder": str(storage)}
    config = student(digits, storage, "search", **still, **{"search.space": space, "search.confirm": [0, 0]})
    config = raycnn.load_config(config, {"search.reuse": "activations", "search.refit": True})
    assert [trial["status"] for trial in raycnn.search(config)["trials"]] == ["finished"] * 2
    root = open_store(str(storage))
    for number, depth in enumerate((0, 1)):
        alone = {"run.name": f"alone-{depth}", "model.unfreeze": depth, "train.reuse": "none"}
        raycnn.train(raycnn.load_config(config, alone))
        packed, plain = (
            final_hashes(root.child(at)) for at in (f"search/search/trials/{number:04d}", f"alone-{depth}")
        )
        assert packed["weights.safetensors"] == plain["weights.safetensors"]
    refit = json.loads(root.get("search/search/refit/run.json"))
    assert refit["teacher"] == json.loads(root.get("search/run.json"))["teacher"]
    assert raycnn.lr_find(raycnn.load_config(config, {"lr_find.steps": 30}))["curve"]


def test_a_teacher_that_is_deleted_ends_a_run_with_one_line(teacher, digits, storage):
    config = student(digits, storage, "orphan", **{"train.epochs": 1})
    raycnn.train(config)
    store = open_store(str(storage / "teacher"))
    store.delete([entry.key for entry in store.list("checkpoints/")])
    more = raycnn.load_config(config, {"train.epochs": 2})
    with pytest.raises(CheckpointError, match=r"the teacher is gone: no checkpoint \d+.*loss\.distill\.teacher"):
        raycnn.train(more)
    assert raycnn.evaluate(config)["rows"] == 60  # what is trained needs none
