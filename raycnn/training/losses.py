"""The loss of a batch in which some rows may be masked, and the weights of the classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

_MASKED = -1


def cross_entropy_sum(
    logits_NK: Tensor,
    labels_N: Tensor,
    valid_N: Tensor,
    *,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy summed over the valid rows, to be divided by their number over all ranks.

    Weights and smoothing are combined as in torch.nn.functional.cross_entropy.

    Args:
        logits_NK: any floating dtype; the sum is float32.
        labels_N: int64 classes; anything where not valid.
        valid_N: bool; False masks a row: its logits get a gradient of exactly zero, even if not finite.
        class_weights_K: float32 factor of each class, or None.
        label_smoothing: probability mass spread evenly over all classes.

    Returns:
        A float32 scalar; 0 when no row is valid.
    """
    # ignore_index alone would let a masked row's Inf or NaN through: 0 * Inf is NaN
    logits_NK = torch.where(valid_N[:, None], logits_NK.float(), 0.0)
    return F.cross_entropy(
        logits_NK,
        torch.where(valid_N, labels_N, _MASKED),
        weight=class_weights_K,
        ignore_index=_MASKED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def class_weights(counts_K: npt.NDArray[np.int64], kind: Literal["none", "balanced"]) -> npt.NDArray[np.float64]:
    """The factor of each class in the loss, float64[K], with mean 1 over the training rows.

    Args:
        counts_K: training rows of each class.
        kind: "none" gives ones; "balanced" rows / (classes * rows of the class), so that every class with
            rows weighs the same in sum; a class without rows gets 0.
    """
    if kind == "none":
        return np.ones(len(counts_K))
    counts = counts_K.astype(np.float64)
    present = counts > 0
    weights = np.zeros_like(counts)
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
