"""Broken images: quarantined by the index, masked in training, never a crash, never over the budget."""

import shutil

import pytest

import raycnn
from raycnn.errors import DataError
from raycnn.storage import open_store
from raycnn.training import checkpoint
from raycnn.training.state import TrainState
from tests.ray.test_train import settings
from tests.support.images import BROKEN

pytestmark = pytest.mark.usefixtures("local_ray")
KINDS = list(BROKEN)[:10]


@pytest.fixture
def own_digits(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "digits")


def final_state(storage):
    store = open_store(f"{storage}/run")
    commit = checkpoint.latest(store, None)
    return TrainState.decode(checkpoint.verified(store, commit)["state.json"])


def test_a_bucket_with_5_percent_broken_images_of_ten_kinds(own_digits, tmp_path):
    for number in range(20):
        kind = KINDS[number % 10]
        make, _ = BROKEN[kind]
        (own_digits / f"digit-{number % 10}" / f"broken-{number}-{kind}").write_bytes(make(number))
    config = settings(own_digits, tmp_path, **{"train.epochs": 1, "train.workers": 2, "data.bad_image_budget": 0.06})
    index = raycnn.index(config)
    assert index["rows"] == 400
    found = {each["key"].split("/")[1]: each["reason"] for each in index["quarantined"]}
    assert found == {f"broken-{n}-{KINDS[n % 10]}": BROKEN[KINDS[n % 10]][1] for n in range(20)}
    assert raycnn.train(config)["status"] == "finished"
    assert final_state(tmp_path).bad_rows == {}

    with pytest.raises(DataError, match="broken-0"):
        raycnn.index(raycnn.load_config(config, {"data.bad_image_budget": 0.01}))


def test_images_that_break_after_the_index_are_masked_and_recorded(own_digits, tmp_path):
    changes = {"train.epochs": 2, "train.workers": 2, "data.bad_image_budget": 0.01}
    config = settings(own_digits, tmp_path, **changes)
    raycnn.index(config)
    table = raycnn.data.manifest.read_index(open_store(str(tmp_path)), index_of(tmp_path)).rows("train")
    changed, gone = table["key"].to_pylist()[:2]
    (own_digits / changed).write_bytes((own_digits / table["key"].to_pylist()[5]).read_bytes())
    (own_digits / gone).unlink()
    trained = raycnn.train(pinned(config, tmp_path))
    assert trained["status"] == "finished"
    assert final_state(tmp_path).bad_rows == {changed: "changed since it was indexed", gone: "missing"}


def test_over_the_budget_in_training_ends_with_code_3(own_digits, tmp_path):
    config = settings(own_digits, tmp_path, **{"train.epochs": 1, "train.workers": 2, "data.bad_image_budget": 0.01})
    raycnn.index(config)
    rows = raycnn.data.manifest.read_index(open_store(str(tmp_path)), index_of(tmp_path)).rows("train")
    for key in rows["key"].to_pylist()[:12]:
        (own_digits / key).write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"of 400 images cannot be read.*changed since it was indexed"):
        raycnn.train(pinned(config, tmp_path))


def index_of(storage):
    return open_store(str(storage)).folders("index")[0]


def pinned(config, storage):
    """The config of a run that was pinned to the index before its images changed."""
    from raycnn.training.run import create_run

    index = raycnn.data.manifest.read_index(open_store(str(storage)), index_of(storage))
    create_run(config, open_store(f"{storage}/run"), index.hash, index.classes)
    return config
