"""A frozen network that answers for the images that another one trains on."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycnn.data.transforms import Preprocessing
from raycnn.training.device import in_chunks
from raycnn.training.problems import Regression
from raycnn.training.state import NetworkFacts


class Teacher:
    """A frozen network's outputs, in eval mode and without gradients, for images as a student sees them.

    Args:
        network: normalised images_NCHW to its outputs.
        facts: of the network.
        student: facts of who learns, for whom images are normalised and whose unit its numbers have.
        digest: of its weights, and of its code if that is known.
        device: where to compute.

    Attributes:
        digest: hex sha256 of what its outputs depend on beside the image.
    """

    def __init__(
        self, network: nn.Module, facts: NetworkFacts, student: NetworkFacts, digest: str, device: torch.device
    ) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.eval().requires_grad_(False)
        self.digest = hashlib.sha256(repr((digest, facts, student)).encode()).hexdigest()
        mine, other = facts.preprocessing, student.preprocessing
        self._size = None if mine.image_size == other.image_size else mine.image_size
        self._colours = _affine(mine, other, device)
        self._chunk, self._unit = student.chunk, (1.0, 0.0)
        if isinstance(facts.problem, Regression) and isinstance(student.problem, Regression):
            spread = student.problem.spread
            self._unit = facts.problem.spread / spread, (facts.problem.mean - student.problem.mean) / spread

    @torch.no_grad()
    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Outputs float32[N, K]."""
        if self._colours:
            images_NCHW = images_NCHW * self._colours[0] + self._colours[1]
        if self._size:
            side = (self._size, self._size)
            images_NCHW = F.interpolate(images_NCHW, side, mode="bilinear", align_corners=False, antialias=True)
        factor, shift = self._unit
        return in_chunks(self.network, images_NCHW, self._chunk).float() * factor + shift


def _affine(mine: Preprocessing, other: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """What takes images normalised as `other` to `mine`: a factor and a shift for each channel; None: nothing."""
    if (mine.mean, mine.std) == (other.mean, other.std):
        return None
    colours = (mine.mean, mine.std, other.mean, other.std)
    mean, std, other_mean, other_std = (torch.tensor(each, device=device)[:, None, None] for each in colours)
    return other_std / std, (other_mean - mean) / std
