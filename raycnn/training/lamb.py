"""LAMB: Adam whose step is scaled layer by layer, for large batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lamb(Optimizer):
    """You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, algorithm 2.

    A layer moves by lr * norm(weights) in the direction of Adam's step plus the decay. Parameters with at most one axis
    (norms and biases) move by Adam's step itself; so does a layer of zeros.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: of the running means of the gradient and of its square.
        eps: added to the root of the latter.
        weight_decay: added to Adam's step, times the weights.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._adam(parameter, group).add_(parameter, alpha=group["weight_decay"])
                    parameter.sub_(update * _trust(parameter, update), alpha=group["lr"])

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(parameter.grad, 1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        update: Tensor = (mean / (1 - beta1 ** state["step"])).div_(root)
        return update


def _trust(parameter: Tensor, update: Tensor) -> Tensor | float:
    """The norm of the layer's weights over that of the step; 1 where either is 0."""
    if parameter.ndim <= 1:
        return 1.0
    weight_norm, update_norm = parameter.norm(), update.norm()
    return torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
