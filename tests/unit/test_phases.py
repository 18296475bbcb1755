from dataclasses import replace

import pytest

from raycnn.config import ModelConfig, Phase
from raycnn.data.plan import Plan
from raycnn.models.stages import find
from raycnn.models.zoo import build
from raycnn.training.due import due, evaluation_due
from raycnn.training.phases import deepest, depth_at, unfreeze_of

PLAN = Plan(num_rows=10, global_batch=4, seed=0)  # 2.5 steps an epoch
PHASES = (Phase(depth=0, epochs=2), Phase(depth=2, epochs=1), Phase(depth="all", epochs=1))


def test_depth_follows_from_the_step_alone():
    assert [depth_at(step, PHASES, PLAN) for step in range(12)] == [0] * 5 + [2] * 3 + ["all"] * 4


@pytest.mark.parametrize("depth", [0, 3, "all"])
def test_one_depth_is_the_depth_of_every_step(depth):
    assert {depth_at(step, depth, PLAN) for step in (0, 7, 1000)} == {depth}


def test_the_deepest_phase_by_its_one_name():
    stages = find(build("timm/test_efficientnet", 5, seed=0))
    named = Phase(depth="conv_head", epochs=1)
    assert deepest(1, stages) == 1
    assert deepest("all", stages) == deepest(PHASES, stages) == stages.num_stages
    assert deepest(PHASES[:2], stages) == deepest((*PHASES[:2], named), stages) == 2
    assert deepest((PHASES[0], named), stages) == "conv_head"


def test_evaluations_come_with_the_step_that_completes_an_epoch_and_at_the_end():
    assert [step for step in range(1, 12) if evaluation_due(step, 1.0, PLAN, total=11)] == [3, 5, 8, 10, 11]
    assert [step for step in range(1, 9) if evaluation_due(step, 2.0, PLAN, total=8)] == [5, 8]


def test_due_at_multiples_and_at_the_end():
    assert [step for step in range(1, 8) if due(step, 3, total=7)] == [3, 6, 7]


@pytest.mark.parametrize(
    ("preset", "epochs", "expected"),
    [
        ("gradual", 1, [0] * 3 + [1] * 2 + [2] * 3 + [3] * 2 + ["all"] * 2),
        ("gradual", 0.4, [0, 1, 2, 3] + ["all"] * 8),
        ("lp-ft", 2, [0] * 5 + ["all"] * 7),
        (1, 2, [1] * 12),
    ],
)
def test_presets_are_phases(preset, epochs, expected):
    stages = find(build("timm/test_efficientnet", 5, seed=0))
    shallow = replace(stages, stages=stages.stages[-4:])
    unfreeze = unfreeze_of(ModelConfig(name="timm/x", unfreeze=preset, unfreeze_epochs=epochs), shallow)
    assert [depth_at(step, unfreeze, PLAN) for step in range(12)] == expected
    assert deepest(unfreeze, stages) == (stages.num_stages if preset != 1 else 1)
