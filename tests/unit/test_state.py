import json
from dataclasses import replace

import pyarrow as pa
import pytest

from raycnn.config import identity, load_config
from raycnn.data.plan import Plan
from raycnn.data.transforms import Preprocessing
from raycnn.errors import CheckpointError, DataError
from raycnn.storage import open_store
from raycnn.training.badrows import BadRows
from raycnn.training.events import encode_events, encode_head
from raycnn.training.run import RunFacts, check_identity, create_run, read_run
from raycnn.training.state import NetworkFacts, TrainState

FACTS = NetworkFacts("timm/x", ("a", "b"), Preprocessing(8, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3), 4)
CONFIG = load_config(
    {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "reference/lenet"}}
)
PLAN = Plan(10, 2, 0)


def accuracies(*values):
    return tuple({"step": step, "metrics": {"accuracy": value}} for step, value in enumerate(values))


def test_state_survives_its_encoding():
    state = TrainState(FACTS, 7, accuracies(0.5), {"k": "truncated"})
    assert TrainState.decode(state.encode()) == state
    halved = replace(state, micro_batch=3)
    assert TrainState.decode(halved.encode()) == halved
    for wrong in (b"0", b'"3"', b"1.5"):
        with pytest.raises(CheckpointError):
            TrainState.decode(halved.encode().replace(b'"micro_batch": 3', b'"micro_batch": ' + wrong))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"network": 1}', b"\xff"])
def test_anything_else_is_refused(data):
    with pytest.raises(CheckpointError):
        TrainState.decode(data)


def test_status_follows_from_steps_and_evaluations():
    train = CONFIG.train.model_copy(update={"epochs": 2, "patience": 2})
    assert TrainState(FACTS, 9).status(train, PLAN) is None
    assert TrainState(FACTS, 10).status(train, PLAN) == "finished"
    assert TrainState(FACTS, 4, accuracies(0.5, 0.4, 0.45)).status(train, PLAN) == "stopped_early"
    assert TrainState(FACTS, 4, accuracies(0.5, 0.4, 0.6)).status(train, PLAN) is None


def test_bad_rows_are_counted_once_and_named_over_the_budget():
    table = pa.table({"key": [f"k{n}" for n in range(96)], "alias": pa.nulls(96, pa.string())})
    budget = BadRows(table, rows=96, quarantined=4, budget=0.05)
    state = budget.count(TrainState(FACTS), [(3, "missing")])
    assert budget.count(state, [(3, "missing")]) == state
    with pytest.raises(DataError, match=r"6 of 100 images.*k3 \(missing\), k4 \(truncated\)"):
        budget.count(state, [(4, "truncated")])


def test_a_run_keeps_its_identity(tmp_path):
    store = open_store(str(tmp_path))
    assert read_run(store) is None
    create_run(CONFIG, store, "hash", ("a", "b"))
    create_run(load_config(CONFIG, {"train.workers": 2}), store, "hash", ("a", "b"))
    facts = read_run(store)
    assert facts.classes == ("a", "b")
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.001 -> 0.5; train.seed: 0 -> 1"):
        check_identity(load_config(CONFIG, {"optim.lr": 0.5, "train.seed": 1}), facts, "here")


def test_a_run_of_before_a_setting_existed_had_its_default():
    known = identity(CONFIG)
    del known["train.exact"], known["augment.crop_scale"]
    facts = RunFacts("hash", ("a", "b"), known, {}, "train")
    check_identity(CONFIG, facts, "here")
    with pytest.raises(CheckpointError, match=r"train.exact: False -> True$|train.exact: False -> True\b"):
        check_identity(load_config(CONFIG, {"train.exact": True}), facts, "here")


def test_a_newer_run_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="newer version"):
        read_run(open_store(str(tmp_path)))


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    lines = [json.dumps({"step": s, "loss": 1 / s, "lr": None, "seconds": {}, "time": 5.0 + s}) for s in (1, 2)]
    path = tmp_path / "events.out.tfevents.0.raycnn"
    path.write_bytes(encode_head() + encode_events(lines))
    events = [event for event in EventFileLoader(str(path)).Load() if event.step]
    assert [(e.step, e.wall_time, e.summary.value[0].tag) for e in events] == [(1, 6.0, "loss"), (2, 7.0, "loss")]
    assert encode_events(lines).startswith(encode_events(lines[:1]))
