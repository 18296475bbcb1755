"""What lies at a cut as one vector for each image."""

from __future__ import annotations

from torch import Tensor

from raycnn.models.tracing import channels_last


def pooled(activations: Tensor) -> Tensor:
    """The mean over all places of a feature map, or all steps of a sequence; a vector as it is. float32[N, F]."""
    if activations.ndim == 2:
        return activations.float()
    if activations.ndim == 3 or channels_last(tuple(activations.shape)):
        return activations.float().flatten(1, -2).mean(1)
    return activations.float().flatten(2).mean(2)
