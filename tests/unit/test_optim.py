from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from raycnn.config import OptimConfig
from raycnn.models.stages import find
from raycnn.models.zoo import build
from raycnn.training.lamb import Lamb
from raycnn.training.optim import build_optimizer, load_optimizer, set_rates, stage_scales

NAMES = ["sgd", "adam", "adamw", "rmsprop", "lamb"]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_norms_and_biases_are_not_decayed() -> None:
    net = network()
    optimizer = build_optimizer(net.named_parameters(), OptimConfig(weight_decay=0.5))
    decayed, plain = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(net[0].weight), id(net[3].weight)]
    assert [id(p) for p in plain["params"]] == [id(p) for p in (net[0].bias, *net[1].parameters(), net[3].bias)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_gradient_shrinks_only_what_decays(name: Any) -> None:
    net = network()
    before = {key: value.clone() for key, value in net.named_parameters()}
    optimizer = build_optimizer(net.named_parameters(), OptimConfig(name=name, lr=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in net.named_parameters():
        if value.ndim == 1:
            assert torch.equal(value, before[key]), key
        elif name == "sgd":
            torch.testing.assert_close(value, before[key] * (1 - 0.1 * 0.5), msg=key)
        else:
            assert bool(((value - before[key]) * before[key] < 0).all()), key  # towards zero; rmsprop, beyond it


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
    configs = {name: OptimConfig.model_validate({"name": name, "momentum": 0.8}) for name in NAMES}
    made = {name: build_optimizer(network().named_parameters(), config) for name, config in configs.items()}
    assert {name: type(optimizer) for name, optimizer in made.items()} == {
        "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
        "lamb": Lamb,
    }  # fmt: skip
    assert made["adam"].defaults["betas"] == made["lamb"].defaults["betas"] == (0.8, 0.999)
    assert made["rmsprop"].defaults["momentum"] == 0.8


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_for_now_is_held_but_left_alone(name: Any) -> None:
    net = network()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = build_optimizer(net.named_parameters(), OptimConfig(name=name, lr=0.1, weight_decay=0.5))
    net(torch.ones(4, 3, 3, 3)).sum().backward()
    optimizer.step()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6
    assert torch.equal(net[0].weight, before)
    assert len(optimizer.state_dict()["state"]) == 4


@pytest.mark.parametrize("name", NAMES)
def test_resume_from_the_state_dict_is_bit_equal(name: Any) -> None:
    config = OptimConfig(name=name, lr=0.05)

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


def lamb_by_hand(weights: list[float], gradients: list[list[float]], lr: float, decay: float) -> list[float]:
    """Algorithm 2 of the paper, number by number, with betas 0.9 and 0.999."""
    means, squares = [0.0] * len(weights), [0.0] * len(weights)
    for t, gradient in enumerate(gradients, 1):
        means = [0.9 * m + 0.1 * g for m, g in zip(means, gradient, strict=True)]
        squares = [0.999 * v + 0.001 * g * g for v, g in zip(squares, gradient, strict=True)]
        steps = [
            m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-6) + decay * w
            for m, v, w in zip(means, squares, weights, strict=True)
        ]
        trust = math.hypot(*weights) / math.hypot(*steps)
        weights = [w - lr * trust * s for w, s in zip(weights, steps, strict=True)]
    return weights


def test_lamb_is_the_papers() -> None:
    weight = nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64))
    optimizer = Lamb([weight], lr=0.1, weight_decay=0.01)
    gradients = [[1.0, -2.0, 0.5, 3.0], [0.1, 0.2, -0.3, 0.4], [-1.0, 1.0, 0.0, 2.0]]
    expected = lamb_by_hand([0.5, -1.0, 2.0, 0.25], gradients, 0.1, 0.01)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64).view(2, 2)
        optimizer.step()
    assert weight.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_lamb_moves_biases_and_layers_of_zeros_by_adams_step() -> None:
    for start in (torch.ones(3), torch.zeros(2, 2)):
        parameter = nn.Parameter(start.clone())
        parameter.grad = torch.full_like(start, 5.0)
        Lamb([parameter], lr=0.1).step()
        torch.testing.assert_close(parameter.detach(), start - 0.1)


STAGES = find(build("timm/test_efficientnet", 5, seed=0))


def test_stages_have_their_own_rates_from_the_head_to_the_stem() -> None:
    scales = stage_scales(STAGES, 0.5)
    assert scales is not None
    module = STAGES.suffix("all")
    assert scales.keys() == dict(module.named_parameters()).keys()
    assert {scales[name] for name in STAGES.head.parameter_names} == {1.0}
    assert [scales[stage.parameter_names[0]] for stage in STAGES.stages] == [
        0.5**n for n in range(STAGES.num_stages, 0, -1)
    ]
    optimizer = build_optimizer(module.named_parameters(), OptimConfig(), scales)
    set_rates(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in module.named_parameters()} == {
        name: 0.1 * scale for name, scale in scales.items()
    }


def test_without_decay_of_stages_groups_and_state_are_as_before() -> None:
    assert stage_scales(STAGES, 1.0) is None
    groups = build_optimizer(network().named_parameters(), OptimConfig()).state_dict()["param_groups"]
    assert [group["params"] for group in groups] == [[0, 1], [2, 3, 4, 5]]
    assert not any("scale" in group for group in groups)


def test_stages_do_not_change_the_order_of_the_parameters() -> None:
    module = STAGES.suffix("all")
    plain, staged = (
        build_optimizer(module.named_parameters(), OptimConfig(), stage_scales(STAGES, decay)) for decay in (1.0, 0.5)
    )
    orders = [[id(p) for group in each.param_groups for p in group["params"]] for each in (plain, staged)]
    assert orders[0] == orders[1]
    assert len(staged.param_groups) > len(plain.param_groups) == 2


def test_a_state_goes_on_under_other_settings() -> None:
    first, second = network(), network()
    before = build_optimizer(first.named_parameters(), OptimConfig(name="sgd", lr=0.1, weight_decay=0.3))
    first(torch.ones(4, 3, 3, 3)).sum().backward()
    set_rates(before, 0.07)
    before.step()
    scales = {name: 0.5 if name.startswith("0.") else 1.0 for name, _ in second.named_parameters()}
    config = OptimConfig(name="sgd", lr=0.2, weight_decay=0.4, momentum=0.5)
    same, cut = (build_optimizer(second.named_parameters(), config, factors) for factors in (None, scales))
    for optimizer in (same, cut):
        load_optimizer(optimizer, before.state_dict(), config)
        assert [group["weight_decay"] for group in optimizer.param_groups if group["weight_decay"]] == [0.4] * (
            len(optimizer.param_groups) // 2
        )
        assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
        buffers = [optimizer.state[p]["momentum_buffer"] for p in second.parameters()]
        assert all(
            torch.equal(mine, before.state[p]["momentum_buffer"])
            for mine, p in zip(buffers, first.parameters(), strict=True)
        )
    assert [group["lr"] for group in same.param_groups] == [0.07, 0.07]  # as the last step left it
    with pytest.raises(ValueError, match="holds 6 parameters, this network trains 4"):
        load_optimizer(build_optimizer(list(second.named_parameters())[2:], config), before.state_dict(), config)
