"""What the first version of each format looks like on disk still loads; what a newer version wrote is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raycnn.data.manifest import read_index
from raycnn.errors import CheckpointError
from raycnn.results.runs import list_runs
from raycnn.searching import records
from raycnn.storage import Store, open_store
from raycnn.storage.lease import LeaseRecord, acquire, read_lease
from raycnn.training import checkpoint
from raycnn.training.run import find_commit, read_run
from raycnn.training.serialize import decode_optimizer, decode_weights
from raycnn.training.state import TrainState
from tests.faults.kit.scenarios import Seen

GOLDEN = Path(__file__).parents[2] / "golden" / "format-1"
INDEX = "d6c0023b1115a765eb35df69fd2f6419501aa804a43f79b6dcceec8cdeb7ec2a"


@pytest.fixture
def storage(tmp_path: Path) -> Store:
    shutil.copytree(GOLDEN, tmp_path / "storage")
    return open_store(str(tmp_path / "storage"))


@pytest.mark.scenario("format of another version")
def test_the_first_one_loads(storage: Store, seen: Seen) -> None:
    run = storage.child("run")
    facts, commit = find_commit(run, "best")
    assert (facts.index, facts.classes, facts.kind) == (INDEX, ("cat", "dog"), "train")
    assert facts.identity["model.name"] == "reference/lenet"
    assert read_lease(run) == LeaseRecord("host/1/abcd", 2, 1, 1, {1: -1, 2: 10}, released=False)
    files = checkpoint.verified(run, commit)
    state = TrainState.decode(files["state.json"])
    assert (commit.name, state.step, state.bad_rows) == ("step-00000010.e001", 10, {"cat/9.png": "missing"})
    assert decode_weights(files["weights.safetensors"])["w"].equal(torch.arange(4.0))
    assert decode_optimizer(files["optimizer.pt"])["w"]["momentum"].equal(torch.arange(4.0))
    (trial,) = records.read_all(run)
    assert (trial.id, trial.values, trial.values_of("loss")) == ("0000", {"optim.lr": 0.1}, [0.5])
    index = read_index(storage, INDEX)
    assert (len(index.manifest), len(index.quarantine), len(index.rows("val"))) == (6, 0, 2)
    assert list_runs(storage.uri) == [{"run": "run", "status": "running", "step": 10, "metric": {"loss": 0.5}}]
    seen.what = "run, lease, commit, trial and index of format 1 load"


@pytest.mark.scenario("format of another version")
def test_a_job_goes_on_from_the_first_one(storage: Store) -> None:
    run = storage.child("run")
    with acquire(run, lambda record: checkpoint.newest_step(run, record), ttl_s=0.2) as held:
        assert (held.epoch, read_lease(run).bases) == (3, {1: -1, 2: 10, 3: 10})


NEWER: dict[str, tuple[str, Callable[[Store], Any]]] = {
    "run": ("run/run.json", lambda storage: read_run(storage.child("run"))),
    "lease": ("run/lease.json", lambda storage: read_lease(storage.child("run"))),
    "commit": (
        "run/checkpoints/step-00000010.e001/MANIFEST.json",
        lambda storage: checkpoint.latest(storage.child("run"), None),
    ),
    "trial": ("run/search/trials/0000/trial.json", lambda storage: records.read_all(storage.child("run"))),
    "index": (f"index/{INDEX}/index.json", lambda storage: read_index(storage, INDEX)),
}


@pytest.mark.scenario("format of another version")
@pytest.mark.parametrize("what", NEWER)
def test_a_newer_one_is_refused(what: str, storage: Store, seen: Seen) -> None:
    key, load = NEWER[what]
    load(storage)
    storage.put(key, json.dumps({**json.loads(storage.get(key)), "format": 2}).encode())
    with pytest.raises(CheckpointError, match="newer") as caught:
        load(storage)
    assert caught.value.code == 7
    assert caught.value.fix
    seen.what = f"code 7: {caught.value.what}"
