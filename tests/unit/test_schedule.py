"""Learning rate and momentum of every step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raycnn.config import OptimConfig
from raycnn.training.schedule import batch_factor, learning_rate, momentum, plateau_drops


def test_warmup_then_cosine() -> None:
    config = OptimConfig(lr=1.0, warmup_epochs=2)
    rates = [learning_rate(step, 100, 5.0, config) for step in range(101)]
    assert rates[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == 0.0
    assert rates[99] > 0
    assert learning_rate(150, 100, 5.0, config) == 0.0  # a run that goes on past its end does not rise again
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_cosine_without_warmup_is_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        assert learning_rate(step, 40, 7.5, OptimConfig(lr=0.3)) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_constant_after_the_warmup() -> None:
    config = OptimConfig(lr=0.2, schedule="constant", warmup_epochs=0.5)
    rates = [learning_rate(step, 20, 4.0, config) for step in range(20)]
    assert rates[:3] == pytest.approx([0.2 / 3, 0.4 / 3, 0.2])
    assert rates[2:] == [0.2] * 18


@settings(derandomize=True, deadline=None)
@given(
    step=st.integers(0, 3000),
    total=st.integers(1, 2000),
    per_epoch=st.floats(0.1, 500),
    warmup=st.floats(0, 20),
    schedule=st.sampled_from(["cosine", "constant", "step", "polynomial", "onecycle", "plateau"]),
)
def test_the_rate_is_within_zero_and_the_peak(
    step: int, total: int, per_epoch: float, warmup: float, schedule: Any
) -> None:
    config = OptimConfig(lr=0.1, warmup_epochs=warmup, schedule=schedule)
    rate = learning_rate(step, total, per_epoch, config)
    assert math.isfinite(rate)
    assert 0 <= rate <= 0.1 * (1 + 1e-12)
    if step < total:
        assert rate > 0


def torchs(schedule: Any, steps: int, momentum: str | None = None, **settings: Any) -> tuple[list[float], list[float]]:
    """Learning rate, and momentum, of each step by a scheduler of torch's."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3, momentum=0.95)
    made = schedule(optimizer, **settings)
    rates, momenta = [], []
    for _ in range(steps):
        rates.append(made.get_last_lr()[0])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        made.step()
    return rates, momenta


@pytest.mark.parametrize("total", [10, 41, 300])
def test_one_cycle_is_torchs(total: int) -> None:
    rates, momenta = torchs(torch.optim.lr_scheduler.OneCycleLR, total, max_lr=0.3, total_steps=total)
    config = OptimConfig(lr=0.3, schedule="onecycle", momentum=0.95)
    assert [learning_rate(step, total, 7.0, config) for step in range(total)] == pytest.approx(rates)
    assert [momentum(step, total, 7.0, config) for step in range(total)] == pytest.approx(momenta)
    assert learning_rate(2 * total, total, 7.0, config) == pytest.approx(rates[-1])


def test_one_cycle_goes_up_for_the_warmup() -> None:
    config = OptimConfig(lr=0.3, schedule="onecycle", warmup_epochs=2, low_momentum=None)
    rates = [learning_rate(step, 100, 5.0, config) for step in range(100)]
    assert rates.index(max(rates)) == 9
    assert momentum(9, 100, 5.0, config) is None
    assert momentum(9, 100, 5.0, OptimConfig(schedule="onecycle", momentum=0.0)) == 0  # none stays none


def test_polynomial_is_linear_or_torchs() -> None:
    config = OptimConfig(lr=0.3, schedule="polynomial", warmup_epochs=1)
    assert [learning_rate(step, 25, 5.0, config) for step in (5, 10, 15, 25)] == pytest.approx([0.3, 0.225, 0.15, 0.0])
    rates, _ = torchs(torch.optim.lr_scheduler.PolynomialLR, 40, total_iters=40, power=0.9)
    config = OptimConfig(lr=0.3, schedule="polynomial", power=0.9)
    assert [learning_rate(step, 40, 5.0, config) for step in range(40)] == pytest.approx(rates)


def test_steps_are_at_thirds_or_every_so_many_epochs_or_where_they_are_listed() -> None:
    def rates(**settings: Any) -> list[float]:
        config = OptimConfig(lr=0.3, schedule="step", **settings)
        return [learning_rate(step, 40, 5.0, config) for step in range(40)]

    assert rates() == pytest.approx([0.3] * 14 + [0.03] * 13 + [0.003] * 13)
    every, _ = torchs(torch.optim.lr_scheduler.StepLR, 40, step_size=15, gamma=0.5)
    assert rates(step_epochs=3, factor=0.5) == pytest.approx(every)
    listed, _ = torchs(torch.optim.lr_scheduler.MultiStepLR, 40, milestones=[10, 35], gamma=0.1)
    assert rates(step_epochs=(2, 7)) == pytest.approx(listed)


@settings(derandomize=True, deadline=None)
@given(
    values=st.lists(st.integers(0, 8), max_size=30),
    mode=st.sampled_from(["max", "min"]),
    patience=st.integers(1, 4),
    delta=st.sampled_from([0.0, 1.0]),
)
def test_a_plateau_is_torchs(values: list[int], mode: Any, patience: int, delta: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor=0.5, patience=patience - 1, threshold=delta, threshold_mode="abs", eps=0.0
    )
    for value in values:
        torchs.step(value)
    drops = plateau_drops([float(value) for value in values], mode, patience, delta)
    assert optimizer.param_groups[0]["lr"] == 0.5**drops
    config = OptimConfig(lr=1.0, schedule="plateau", factor=0.5)
    assert learning_rate(3, 40, 5.0, config, drops) == 0.5**drops


def test_evaluations_on_no_rows_are_no_plateau() -> None:
    assert plateau_drops([None] * 9, "max", 2, 0.0) == 0
    assert plateau_drops([0.5, None, 0.5, None, 0.4], "max", 2, 0.0) == 1


def test_the_rate_follows_the_batch_on_request() -> None:
    settings = {name: OptimConfig.model_validate({"lr_scaling": name}) for name in ("none", "linear", "sqrt")}
    assert [batch_factor(config, 1024) for config in settings.values()] == [1, 4, 2]
    assert [batch_factor(config, 256) for config in settings.values()] == [1, 1, 1]
    assert batch_factor(settings["linear"], 64) == 0.25
