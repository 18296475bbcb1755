"""The frozen part of a network: run once per batch for all that train on what comes out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, nn

from raycnn.config import Depth
from raycnn.models.stages import Stages
from raycnn.training.device import Normalize, autocast, in_chunks


class Prefix:
    """What comes before the suffixes of a network at any depths: in eval mode, without gradients, outside of DDP.

    Args:
        stages: of the network, on the device.
        normalize: uint8 images_NHWC to what the network takes.
        chunk: rows per pass.
        precision: of autocast.

    Attributes:
        rows: how many rows went through to each depth's cut.
    """

    def __init__(self, stages: Stages, normalize: Normalize, chunk: int, precision: torch.dtype) -> None:
        self.stages, self.normalize, self._chunk, self._precision = stages, normalize, chunk, precision
        self.rows: Counter[Depth] = Counter()
        self._parts: dict[tuple[Depth, Depth], nn.Module | None] = {}

    def taps(self, images_NHWC: Tensor, depths: Collection[Depth]) -> dict[Depth, Tensor]:
        """The input of the suffix at each depth, from uint8 images on the device; one pass feeds them all."""
        return self.onward(self.normalize(images_NHWC), self.stages.num_stages, depths)

    @torch.no_grad()
    def onward(self, inputs: Tensor, depth: Depth, depths: Collection[Depth]) -> dict[Depth, Tensor]:
        """The same from the input of the suffix at `depth`, which is the deepest of them or deeper."""
        found: dict[Depth, Tensor] = {}
        with autocast(inputs.device, self._precision):
            for target in self.stages.deepest_first(depths):
                part = self._part(depth, target)
                if part is not None:
                    self.rows[target] += len(inputs)
                    inputs = in_chunks(part, inputs, self._chunk)
                found[target], depth = inputs, target
        return found

    def _part(self, deep: Depth, shallow: Depth) -> nn.Module | None:
        if (deep, shallow) not in self._parts:
            part = self.stages.between(deep, shallow)
            self._parts[deep, shallow] = part if part is None else part.eval().requires_grad_(False)
        return self._parts[deep, shallow]
