"""The running mean of a network's weights, which is evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Ema:
    """Exponential moving average (Polyak and Juditsky, 1992), of parameters and of BatchNorm's statistics.

    At first the mean is over the few steps that there were: the decay of step s is at most (1 + s) / (10 + s), as in
    TensorFlow's ExponentialMovingAverage.

    Args:
        module: whose weights train.
        decay: weight of the mean so far against that of a step.

    Attributes:
        weights: the means by name.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self._live: dict[str, Tensor] = module.state_dict()
        self.weights = {name: tensor.clone() for name, tensor in self._live.items()}

    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        names = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        means, live = [self.weights[name] for name in names], [self._live[name] for name in names]
        torch._foreach_lerp_(means, live, 1 - decay)
        for name in self._live.keys() - names:
            self.weights[name].copy_(self._live[name])

    def __call__(self, inputs: Tensor) -> Tensor:
        """The module with the means for its weights."""
        outputs: Tensor = functional_call(self._module, self.weights, (inputs,))
        return outputs

    def buffers(self) -> Iterator[Tensor]:
        """The means of the module's buffers, in order."""
        yield from (self.weights[name] for name, _ in self._module.named_buffers() if name in self.weights)

    def restore(self, live: Mapping[str, Tensor] | None) -> None:
        """Take the weights that are loaded as the means, and train on from `live`; None: from the same.

        Raises:
            LookupError, RuntimeError: not the module's.
        """
        for name, tensor in self._live.items():
            self.weights[name].copy_(tensor)
            if live is not None:
                tensor.copy_(live[name])
