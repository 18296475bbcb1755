from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raycnn.config import OptimConfig
from raycnn.training.optim import build_optimizer, learning_rate


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_norms_and_biases_are_not_decayed() -> None:
    net = network()
    optimizer = build_optimizer(net.named_parameters(), OptimConfig(weight_decay=0.5))
    decayed, plain = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(net[0].weight), id(net[3].weight)]
    assert [id(p) for p in plain["params"]] == [id(p) for p in (net[0].bias, *net[1].parameters(), net[3].bias)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_without_gradient_shrinks_only_what_decays(name: str) -> None:
    net = network()
    before = {key: value.clone() for key, value in net.named_parameters()}
    optimizer = build_optimizer(net.named_parameters(), OptimConfig(name=name, lr=0.1, weight_decay=0.5))  # type: ignore[arg-type]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in net.named_parameters():
        if value.ndim == 1:
            assert torch.equal(value, before[key]), key
        elif name == "sgd":
            torch.testing.assert_close(value, before[key] * (1 - 0.1 * 0.5), msg=key)
        else:
            assert value.abs().sum() < before[key].abs().sum(), key


def test_sgd_and_adamw_take_their_settings() -> None:
    sgd = build_optimizer(network().named_parameters(), OptimConfig(name="sgd", lr=0.3, momentum=0.8, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.3, 0.8, True)
    adamw = build_optimizer(network().named_parameters(), OptimConfig(name="adamw", lr=0.3, momentum=0.8))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.999)
    # torch must not choose its kernels by itself: a resume needs the same ones
    assert (adamw.defaults["foreach"], adamw.defaults["fused"], sgd.defaults["foreach"]) == (
        False,
        False,
        False,
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_frozen_for_now_is_held_but_left_alone(name: str) -> None:
    net = network()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = build_optimizer(net.named_parameters(), OptimConfig(name=name, lr=0.1, weight_decay=0.5))  # type: ignore[arg-type]
    net(torch.ones(4, 3, 3, 3)).sum().backward()
    optimizer.step()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6
    assert torch.equal(net[0].weight, before)
    assert len(optimizer.state_dict()["state"]) == 4


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_resume_from_the_state_dict_is_bit_equal(name: str) -> None:
    config = OptimConfig(name=name, lr=0.05)  # type: ignore[arg-type]

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            images = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            net(images).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole, first, second = network(), network(), network()
    first.load_state_dict(whole.state_dict())
    train(whole, build_optimizer(whole.named_parameters(), config), range(6))

    before = build_optimizer(first.named_parameters(), config)
    train(first, before, range(3))
    second.load_state_dict(first.state_dict())
    after = build_optimizer(second.named_parameters(), config)
    after.load_state_dict(before.state_dict())
    train(second, after, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


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
    schedule=st.sampled_from(["cosine", "constant"]),
)
def test_the_rate_is_within_zero_and_the_peak(
    step: int, total: int, per_epoch: float, warmup: float, schedule: str
) -> None:
    config = OptimConfig(lr=0.1, warmup_epochs=warmup, schedule=schedule)  # type: ignore[arg-type]
    rate = learning_rate(step, total, per_epoch, config)
    assert math.isfinite(rate)
    assert 0 <= rate <= 0.1
    if step < total:
        assert rate > 0
