"""The range test: what a rate's curve says, and the fit that goes through it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from raycnn.config import load_config
from raycnn.errors import ConfigError
from raycnn.results.lr_find import draw, steep, valley
from raycnn.training.probe import Probe, smoothed
from raycnn.training.ranks import Ranks
from tests.unit.test_member import member

LRS = np.geomspace(1e-6, 10, 100)


def curve(fall: float, away: float) -> Any:
    """A loss that falls from 2 to 1 around one rate, and runs away above another."""
    logs = np.log10(LRS)
    return 2 - 1 / (1 + np.exp(-3 * (logs - math.log10(fall)))) + np.where(away < LRS, (logs - math.log10(away)) * 3, 0)


def test_the_steepest_rate_is_in_the_middle_of_the_fall() -> None:
    assert steep(LRS, curve(1e-3, 0.3)) == pytest.approx(1e-3, rel=0.2)


def test_the_valley_is_in_the_middle_of_the_longest_fall() -> None:
    found = valley(LRS, curve(1e-3, 0.3))
    assert found == pytest.approx(math.sqrt(1e-6 * 0.3), rel=0.2)  # here it falls all the way
    flat = np.where(LRS < 1e-4, 2 + 0.001 * np.arange(100), curve(1e-3, 0.3))
    assert valley(LRS, flat) == pytest.approx(math.sqrt(1e-4 * 0.3), rel=0.2)


def test_a_loss_that_never_falls_gives_no_advice() -> None:
    rising = np.linspace(2, 8, 100)
    assert steep(LRS, rising) is None
    assert valley(LRS, rising) is None


def test_means_are_true_from_the_first_loss_on() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 2.0])[1] == pytest.approx((0.9 * 1 + 2) / 1.9)


def test_it_is_drawn_whatever_there_is_to_say() -> None:
    points = [{"lr": lr, "loss": 2.0, "smoothed": 2.0} for lr in LRS.tolist()]
    for advice in (1e-3, None):
        picture = draw({"run": "r", "valley": advice, "steep": advice, "curve": points})
        assert picture is not None
        assert picture.startswith(b"\x89PNG")


def test_low_is_below_high() -> None:
    tree = {"run": {"name": "r", "storage": "/x"}, "data": {"source": "/y"}, "model": {"name": "timm/x"}}
    with pytest.raises(ConfigError, match="low must be below high"):
        load_config(tree, {"lr_find.low": 1, "lr_find.high": 0.1})


def probe(**train: Any) -> Probe:
    """20 steps on 10 rows, 4 a step."""
    found = member(kind=Probe, log_every=1, epochs=8, optim={"name": "sgd", "lr_scaling": "sqrt"}, **train)
    assert isinstance(found, Probe)
    assert found.total == 20
    return found


def go(made: Probe) -> None:
    while not made.ended:
        step = made.state.step
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, made.learner._whole.head.f6.in_features, generator=generator)
        with made.failing_alone():
            made.step(inputs, torch.tensor([0, 1, 0, 1]), torch.ones(4, dtype=torch.bool), 4.0, Ranks())
        made.commit(evaluated=True)
        made.settle()


def test_the_rate_goes_from_low_to_high_whatever_the_schedule() -> None:
    made = probe()
    assert [made._rates(step)[0] for step in (0, 19)] == pytest.approx([1e-6 / 8, 10 / 8])  # as lr_scaling has it
    go(made)
    assert made.error is None
    lrs, losses = zip(*made.findings()["curve"], strict=True)
    assert lrs == pytest.approx([1e-6 * 10 ** (7 * step / 19) for step in range(len(lrs))])
    assert losses[0] == pytest.approx(math.log(2), abs=0.5)
    assert not made.evaluation_due()


def test_a_gradient_that_is_not_finite_ends_it_without_an_error() -> None:
    made = probe()
    with torch.no_grad():
        next(made.learner._whole.parameters()).fill_(float("inf"))
    go(made)
    assert made.error is None
    assert made.status == "finished"
    assert made.findings() == {"curve": []}


def test_a_loss_that_runs_away_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = probe()
    losses = iter([1.0] * 5 + [50.0] * 20)
    monkeypatch.setattr(made.learner, "backward", lambda *_: torch.tensor([4 * next(losses)]))
    monkeypatch.setattr(made.learner, "step", lambda *_: 1.0)
    go(made)
    assert made.status == "finished"
    assert len(made.points) == 6
