"""A linear head on features that stand still: a convex problem, with one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Those that `fit_chosen` goes through, from the strongest penalty on."""

_ITERATIONS: Final = 500
_GRADIENT, _CHANGE = 1e-6, 1e-10
_CONSTANT: Final = 1e-6  # float32 features that vary by less of their mean do not vary


def _sum_of_squares(outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
    return (outputs_NK[:, 0] - targets_N).square().sum() / 2


def _cross_entropy(outputs_NK: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(outputs_NK, targets_N, reduction="sum")


def _yes_or_no(outputs_NK: Tensor, targets_NK: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs_NK, targets_NK, reduction="sum")


_LOSSES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "single-label": _cross_entropy,
    "binary": _yes_or_no,
    "multi-label": _yes_or_no,
    "regression": _sum_of_squares,
}


@dataclass(frozen=True)
class LinearHead:
    """weight @ standardised features + bias: outputs as of a network's last layer, for a problem's `measure`."""

    mean_F: Floats
    scale_F: Floats
    weight_FK: Floats
    bias_K: Floats

    def __call__(self, features_NF: Features) -> npt.NDArray[np.float32]:
        """float32 outputs_NK."""
        inputs_NF = (features_NF - self.mean_F) / self.scale_F
        return np.asarray(inputs_NF @ self.weight_FK + self.bias_K, np.float32)


def fit(features_NF: Features, targets_N: Array, task: str, num_outputs: int, strength: float) -> LinearHead:
    """The head that minimises the sum of the rows' losses and |weight|^2 / (2 strength).

    Of one label that is multinomial logistic regression, with scikit-learn's C as the strength; yes or no has a
    logistic regression a class, a number ridge regression.

    Args:
        features_NF: they are standardised, by their own mean and deviation.
        targets_N: as the problem gives them.
        task: the problem's.
        num_outputs: K.
    """
    return next(path(features_NF, targets_N, task, num_outputs, [strength]))


def fit_chosen(
    features_NF: Features, targets_N: Array, held_N: npt.NDArray[np.bool_], task: str, num_outputs: int
) -> LinearHead:
    """`fit` to all rows with the strength that says the held ones best when fitted to the others.

    From the strongest penalty on, until the next one says them worse: beyond that it is overfitting.
    """
    rest_N, lowest, chosen = ~held_N, np.inf, STRENGTHS[0]
    heads = path(features_NF[rest_N], targets_N[rest_N], task, num_outputs, STRENGTHS)
    for strength, head in zip(STRENGTHS, heads, strict=False):
        loss = _loss(head(features_NF[held_N]), targets_N[held_N], task)
        if loss >= lowest:
            break
        lowest, chosen = loss, strength
    return fit(features_NF, targets_N, task, num_outputs, chosen)


def path(
    features_NF: Features, targets_N: Array, task: str, num_outputs: int, strengths: Sequence[float]
) -> Iterator[LinearHead]:
    """The heads at several strengths, each found from the one before it."""
    mean_F, scale_F = features_NF.mean(0, dtype=np.float64), features_NF.std(0, dtype=np.float64)
    scale_F = np.where(scale_F > _CONSTANT * np.abs(mean_F), scale_F, 1.0)
    inputs, targets = torch.from_numpy((features_NF - mean_F) / scale_F), torch.from_numpy(np.asarray(targets_N))
    targets = targets.double() if targets.is_floating_point() else targets
    basis = None
    if inputs.shape[1] > inputs.shape[0]:  # the weights lie in the span of the rows, whose turning changes no norm
        basis, lower = torch.linalg.qr(inputs.T)
        inputs = lower.T.contiguous()
    weight, bias = inputs.new_zeros(inputs.shape[1], num_outputs), inputs.new_zeros(num_outputs)
    for strength in strengths:
        _minimise(weight, bias, inputs, targets, _LOSSES[task], strength)
        turned = weight if basis is None else basis @ weight
        yield LinearHead(mean_F, scale_F, turned.detach().numpy().copy(), bias.detach().numpy().copy())


def _minimise(
    weight: Tensor, bias: Tensor, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], c: float
) -> None:
    """L-BFGS (Liu and Nocedal, 1989), in place."""
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_ITERATIONS,
        tolerance_grad=_GRADIENT,
        tolerance_change=_CHANGE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (loss(inputs @ weight + bias, targets) + weight.square().sum() / (2 * c)) / len(inputs)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small products take longer with more, above all where others compute
    try:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    finally:
        torch.set_num_threads(threads)


def _loss(outputs_NK: npt.NDArray[np.float32], targets_N: Array, task: str) -> float:
    targets = torch.from_numpy(np.asarray(targets_N))
    targets = targets.double() if targets.is_floating_point() else targets
    return float(_LOSSES[task](torch.from_numpy(outputs_NK).double(), targets))
