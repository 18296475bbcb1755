"""The loss of a batch in which some rows may be masked, and what the training rows say of the classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from raycnn.config import LossConfig

BatchLoss = Callable[..., Tensor]
"""Of logits_NK, labels_N, valid_N and, where images are mixed, factors_N of the rows; as `cross_entropy_sum`: summed
over the valid rows, float32."""

_MASKED = -1
_NEAR_ZERO = 1e-12


def one_label_loss(config: LossConfig, counts_K: npt.NDArray[np.int64] | None, device: torch.device) -> BatchLoss:
    """The loss that the config says, of rows with one of K classes.

    Args:
        config: see each of its fields.
        counts_K: training rows of each class; None: as many of each.
        device: where the logits are.
    """
    tau, weights_K, shift_K = config.logit_adjustment, None, None
    if counts_K is not None and config.class_weights != "none":
        weights = class_weights(counts_K, config.class_weights, config.effective_beta)
        weights_K = torch.from_numpy(weights).float().to(device)
    if counts_K is not None and tau:
        shift_K = torch.from_numpy(tau * log_priors(counts_K)).float().to(device)
    function: Callable[..., Tensor] = square_sum if config.name == "mse" else cross_entropy_sum
    if config.name == "focal":
        function = partial(focal_sum, gamma=config.focal_gamma)

    def loss(logits_NK: Tensor, labels_N: Tensor, valid_N: Tensor, factors_N: Tensor | None = None) -> Tensor:
        logits_NK = logits_NK if shift_K is None else logits_NK + shift_K
        return function(
            logits_NK, labels_N, valid_N, class_weights_K=weights_K, label_smoothing=config.label_smoothing,
            factors_N=factors_N,
        )  # fmt: skip

    return loss


@dataclass(frozen=True)
class Mixed:
    """Targets of images that are mixed of two: shares_N, float32, of the first and the rest of the second."""

    first_N: Tensor
    second_N: Tensor
    shares_N: Tensor

    def __getitem__(self, place: slice) -> Mixed:
        return Mixed(self.first_N[place], self.second_N[place], self.shares_N[place])


@dataclass(frozen=True)
class Taught:
    """Targets of images, and a teacher's outputs for the same views, float32[N, K]."""

    own: Tensor | Mixed
    teacher_NK: Tensor

    def __getitem__(self, place: slice) -> Taught:
        return Taught(self.own[place], self.teacher_NK[place])


Targets = Tensor | Mixed | Taught
"""Of rows: what the loss takes, or two of it for each, or a teacher's outputs beside it."""


def of_mixed(loss: BatchLoss, logits_NK: Tensor, targets: Targets, valid_N: Tensor) -> Tensor:
    """The loss of targets that may be mixed of two: then the mean of the losses of both, by their shares."""
    if not isinstance(targets, Mixed):
        return loss(logits_NK, targets, valid_N)
    first = loss(logits_NK, targets.first_N, valid_N, targets.shares_N)
    return first + loss(logits_NK, targets.second_N, valid_N, 1 - targets.shares_N)


def cross_entropy_sum(
    logits_NK: Tensor,
    labels_N: Tensor,
    valid_N: Tensor,
    *,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
    factors_N: Tensor | None = None,
) -> Tensor:
    """Cross entropy summed over the valid rows, to be divided by their number over all ranks.

    Weights and smoothing are combined as in torch.nn.functional.cross_entropy.

    Args:
        logits_NK: any floating dtype; the sum is float32.
        labels_N: int64 classes; anything where not valid.
        valid_N: bool; False masks a row: its logits get a gradient of exactly zero, even if not finite.
        class_weights_K: float32 factor of each class, or None.
        label_smoothing: probability mass spread evenly over all classes.
        factors_N: float32 factor of each row, or None.

    Returns:
        A float32 scalar; 0 when no row is valid.
    """
    loss = F.cross_entropy(
        masked(logits_NK, valid_N),  # ignore_index alone would let its Inf or NaN through
        torch.where(valid_N, labels_N, _MASKED),
        weight=class_weights_K,
        ignore_index=_MASKED,
        reduction="sum" if factors_N is None else "none",
        label_smoothing=label_smoothing,
    )
    return loss if factors_N is None else (loss * factors_N).sum()


def focal_sum(
    logits_NK: Tensor,
    labels_N: Tensor,
    valid_N: Tensor,
    *,
    gamma: float,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
    factors_N: Tensor | None = None,
) -> Tensor:
    """Cross entropy in which what is right already counts little: (1 - p)^gamma before each log p (Lin et al., 2017).

    As `cross_entropy_sum` in all else; equal to it where gamma is 0.
    """
    log_p_NK = masked(logits_NK, valid_N).log_softmax(1)
    targets_NK = _smooth_targets(log_p_NK, labels_N, valid_N, label_smoothing)
    if class_weights_K is not None:
        targets_NK = targets_NK * class_weights_K
    if factors_N is not None:
        targets_NK = targets_NK * factors_N[:, None]
    wrong_NK = (-torch.expm1(log_p_NK)).clamp_min(_NEAR_ZERO)  # the power's slope at 0 may be infinite
    return -(targets_NK * wrong_NK**gamma * log_p_NK).sum()


def square_sum(
    logits_NK: Tensor,
    labels_N: Tensor,
    valid_N: Tensor,
    *,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
    factors_N: Tensor | None = None,
) -> Tensor:
    """Squared difference of the probabilities to the one-hot label, the mean over classes; summed over the valid rows.

    Brier's score (1950), over K. A row's weight is that of its class; the rest as in `cross_entropy_sum`.
    """
    p_NK = masked(logits_NK, valid_N).softmax(1)
    targets_NK = _smooth_targets(p_NK, labels_N, valid_N, label_smoothing)
    losses_N = torch.where(valid_N, (p_NK - targets_NK).square().mean(1), 0.0)
    if class_weights_K is not None:
        losses_N = losses_N * class_weights_K[_known(labels_N, valid_N)]
    return losses_N.sum() if factors_N is None else (losses_N * factors_N).sum()


def class_weights(
    counts_K: npt.NDArray[np.int64], kind: Literal["none", "balanced", "effective"], beta: float = 0.999
) -> npt.NDArray[np.float64]:
    """The factor of each class in the loss, float64[K], with mean 1 over the training rows.

    Args:
        counts_K: training rows of each class.
        kind: "none" gives ones; "balanced" rows / (classes * rows of the class), so that every class with
            rows weighs the same in sum; "effective" the inverse of the effective number (1 - beta^n) / (1 - beta) of
            its n rows (Cui et al., 2019); a class without rows gets 0.
        beta: of "effective", in [0, 1): 0 is like none, towards 1 like balanced.
    """
    if kind == "none":
        return np.ones(len(counts_K))
    counts = counts_K.astype(np.float64)
    present = counts > 0
    numbers, weights = counts[present], np.zeros_like(counts)
    if kind == "effective":
        numbers = -np.expm1(numbers * np.log(beta)) / (1 - beta) if beta else np.ones_like(numbers)
        weights[present] = counts.sum() / ((counts[present] / numbers).sum() * numbers)
    else:
        weights[present] = counts.sum() / (present.sum() * numbers)
    return weights


def log_priors(counts_K: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """log of each class's share of the training rows, what logit adjustment (Menon et al., 2021) adds to the logits.

    A class without rows counts as half of one.
    """
    counts = np.maximum(counts_K.astype(np.float64), 0.5)
    return np.asarray(np.log(counts / counts.sum()))


def masked(logits_NK: Tensor, valid_N: Tensor) -> Tensor:
    """In float32, with zeros for a masked row: 0 * Inf would be NaN."""
    return torch.where(valid_N[:, None], logits_NK.float(), 0.0)


def sum_of(losses_N: Tensor, valid_N: Tensor, factors_N: Tensor | None) -> Tensor:
    """The sum over the valid rows, each times its factor."""
    losses_N = torch.where(valid_N, losses_N, 0.0)
    return losses_N.sum() if factors_N is None else (losses_N * factors_N).sum()


def _known(labels_N: Tensor, valid_N: Tensor) -> Tensor:
    return torch.where(valid_N, labels_N, 0)


def _smooth_targets(like_NK: Tensor, labels_N: Tensor, valid_N: Tensor, smoothing: float) -> Tensor:
    """float32[N, K]: one-hot and smoothed; zeros for a masked row."""
    one_hot_NK = F.one_hot(_known(labels_N, valid_N), like_NK.shape[1])
    targets_NK = one_hot_NK.to(like_NK.dtype) * (1 - smoothing) + smoothing / like_NK.shape[1]
    return torch.where(valid_N[:, None], targets_NK, 0.0)
