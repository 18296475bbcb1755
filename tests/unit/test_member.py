"""One fit among many: when it is evaluated next, and how it fails without the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycnn.config import load_config
from raycnn.data.decode import Limits
from raycnn.data.plan import Plan
from raycnn.data.reader import ImageReader
from raycnn.errors import DivergedError, RaycnnError, StorageError
from raycnn.training.clock import Clock
from raycnn.training.feed import Task
from raycnn.training.member import Member
from raycnn.training.ranks import Ranks
from raycnn.training.recorder import Recorder
from raycnn.training.setup import Body, facts_of
from raycnn.training.state import TrainState

CPU = torch.device("cpu")
BODIES: dict[str, Body] = {}


def member(
    step: int = 0, *, alone: bool = False, rows: int = 10, state: TrainState | None = None, kind: type[Member] = Member,
    optim: dict[str, Any] | None = None, loss: dict[str, Any] | None = None, **train: Any,
) -> Member:  # fmt: skip
    config = load_config(
        {
            "run": {"name": "r", "storage": "/x"},
            "data": {"source": "/y"},
            "model": {"name": "reference/lenet", "unfreeze": 0},
            "optim": optim or {},
            "loss": loss or {},
            "train": {"epochs": 3, "global_batch": 4, **train},
        }
    )
    facts = facts_of(config, ("a", "b"))
    body = BODIES.setdefault("lenet", Body(config, facts, CPU))
    keys, labels = [f"{n}.png" for n in range(rows)], np.arange(rows, dtype=np.int32) % 2
    table = pa.table({"key": keys, "label": labels, "alias": pa.nulls(rows, pa.string())})
    reader = ImageReader("/y", facts.preprocessing, Limits(1, 1))
    task = Task(Plan(rows, 4, 0), table, reader, table, reader, 4, 1.0, 1)
    learner = body.copied_learner(config, Ranks(), None)
    return kind(learner, state or TrainState(facts, step), Recorder(None), task, Clock(), alone=alone)


# 10 rows, 4 a step: 2.5 steps an epoch, so epochs end inside of steps 3, 5 and 8
@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1.0, {0: 3, 1: 3, 2: 3, 3: 5, 4: 5, 5: 8, 7: 8}),
        (2.0, {0: 5, 4: 5, 5: 8}),
        (0.5, {0: 2, 2: 3, 3: 4, 4: 5, 5: 7, 7: 8}),
        (100.0, {0: 8, 7: 8}),
        (0.01, {0: 1, 1: 2, 7: 8}),
    ],
)
def test_the_step_of_the_next_evaluation(every: float, expected: dict[int, int]) -> None:
    assert {step: member(step, eval_every=every).next_evaluation() for step in expected} == expected


def test_one_that_stands_at_the_end_goes_nowhere() -> None:
    made = member(8)
    assert made.total == 8
    assert made.status == "finished"
    assert made.ended
    assert made.next_evaluation() == 8


@given(st.floats(0.05, 5.0), st.integers(4, 60), st.floats(0.2, 6.0))
def test_no_evaluation_lies_between_here_and_the_next(every: float, rows: int, epochs: float) -> None:
    made = member(rows=rows, eval_every=every, epochs=epochs)
    for step in range(made.total):
        made.state = TrainState(made.state.network, step)
        found = made.next_evaluation()
        due = []
        for later in range(step + 1, made.total + 1):
            made.state = TrainState(made.state.network, later)
            due += [later] * made.evaluation_due()
        assert found == due[0]


def test_a_failure_that_is_known_becomes_its_own() -> None:
    made, error = member(), StorageError("down")
    with made.failing_alone():
        raise error
    assert made.error is error
    assert made.ended
    assert made.status is None


def test_any_other_failure_ends_it_alone_or_its_process() -> None:
    alone, other = member(5, alone=True), member(5)
    with alone.failing_alone():
        raise ValueError("odd")
    assert type(alone.error) is RaycnnError
    assert (alone.error.what, alone.error.where) == ("ValueError: odd", "step 5")
    with pytest.raises(ValueError, match="odd"), other.failing_alone():
        raise ValueError("odd")
    assert other.error is None
    for each in (alone, other):
        with pytest.raises(KeyboardInterrupt), each.failing_alone():
            raise KeyboardInterrupt


def test_one_that_does_not_fail_goes_on() -> None:
    made = member()
    with made.failing_alone():
        pass
    assert not made.ended


def steps(made: Member, number: int) -> None:
    for _ in range(number):
        inputs = torch.randn(4, made.learner._whole.head.f6.in_features, generator=torch.Generator().manual_seed(0))
        with made.failing_alone():
            made.step(inputs, torch.tensor([0, 1, 0, 1]), torch.ones(4, dtype=torch.bool), 4.0, Ranks())


def test_a_diverging_one_ends_and_its_neighbour_does_not_notice() -> None:
    healthy, sick, alone = (member(alone=True) for _ in range(3))
    with torch.no_grad():
        next(sick.learner._whole.parameters()).fill_(float("inf"))
    steps(sick, 1)
    steps(healthy, 2)
    steps(alone, 2)
    assert isinstance(sick.error, DivergedError)
    assert sick.error.where == "optim.lr"
    assert "step 0" in sick.error.what
    assert ".png" in sick.error.what
    assert sick.state.step == 0
    assert healthy.state.step == 2
    pairs = zip(healthy.learner._whole.parameters(), alone.learner._whole.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    body = BODIES["lenet"].module.head.f6.weight
    assert not torch.equal(healthy.learner.module.head.f6.weight, body)  # it trained a copy


def test_it_ends_with_its_last_step() -> None:
    made = member(7)
    steps(made, 1)
    made.settle()
    assert made.status == "finished"


def test_a_plateau_lowers_the_rate_as_the_evaluations_say() -> None:
    made = member(optim={"schedule": "plateau", "factor": 0.5, "lr": 0.1, "plateau_patience": 1})
    rates = []
    for step, accuracy in enumerate([0.5, 0.6, 0.6, 0.7, 0.1, None, 0.7]):
        made.state = replace(made.state, step=step)
        made.evaluated({"accuracy": accuracy})
        rates.append(made._rates(step)[0])
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125]
    resumed = member(optim={"schedule": "plateau", "factor": 0.5, "lr": 0.1, "plateau_patience": 1})
    resumed.state = TrainState.decode(made.state.encode())
    assert resumed._rates(7) == made._rates(7) == (0.0125, None)


def test_the_rate_is_scaled_with_the_batch() -> None:
    for scaling, factor in {"none": 1, "linear": 4 / 256, "sqrt": 1 / 8}.items():
        assert member(optim={"schedule": "constant", "lr_scaling": scaling})._rates(0)[0] == pytest.approx(
            1e-3 * factor
        )


def test_the_passes_that_memory_holds_are_part_of_the_state() -> None:
    made = member(micro_batch="auto")
    steps(made, 1)
    assert made.state.micro_batch is None
    assert b"micro_batch" not in made.state.encode()  # as it was before there was one
    network, sizes = made.learner.gradients.network, list[int]()

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(inputs)

    made.learner.gradients.network = forward
    steps(made, 1)
    assert (made.state.step, made.state.micro_batch) == (2, 2)
    assert sizes == [4, 2, 2]
    resumed = member(micro_batch="auto", state=TrainState.decode(made.state.encode()))
    assert resumed.learner.micro_batch.rows == 2
    steps(resumed, 1)
    assert resumed.state.micro_batch == 2


def test_rows_a_pass_that_are_asked_for_are_no_part_of_the_state() -> None:
    made = member(micro_batch=2)
    steps(made, 1)
    assert made.state.micro_batch is None


def test_penalties_are_told_apart_from_the_loss_on_images(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    plain, made = member(log_every=1), member(log_every=1, loss={"l2": 0.5})
    for each in (plain, made):
        monkeypatch.setattr(each, "line", lambda **values: lines.append(values))
        steps(each, 1)
    assert lines[0]["loss"] == lines[1]["loss"]
    assert "penalty" not in lines[0]
    weights = BODIES["lenet"].module.head
    expected = sum(0.5 * p.detach().square().sum() for p in weights.parameters() if p.ndim > 1)
    assert lines[1]["penalty"] == pytest.approx(float(expected), rel=1e-5)


def test_the_mean_of_the_weights_follows_the_steps() -> None:
    made = member(ema=0.999)
    steps(made, 1)
    live, (kept, _) = made.learner.module.state_dict(), made.learner.snapshot()
    start = BODIES["lenet"].module.state_dict()
    name = "head.f6.weight"
    torch.testing.assert_close(kept[name], start[name] + 0.9 * (live[name] - start[name]))
