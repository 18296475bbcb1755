"""The frozen part of a network: run once per batch for all that train on what comes out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

import torch
from torch import Tensor

from raycnn.config import Depth
from raycnn.models.stages import Stages
from raycnn.training.compiling import compiled
from raycnn.training.device import Normalize, autocast, in_chunks
from raycnn.training.teacher import Teacher

TEACHER: Final = "the teacher"
"""In the place of a depth: what a teacher says of the images. No module has such a path."""


class Prefix:
    """What comes before the suffixes of a network at any depths: in eval mode, without gradients, outside of DDP.

    Args:
        stages: of the network, on the device.
        normalize: uint8 images_NHWC to what the network takes.
        chunk: rows per pass.
        precision: of autocast.
        compiled: whether torch.compile makes kernels for it. They reach across layers, so that bits depend on where a
            part starts and ends: then every part is one stage, or its beginning, whatever depths are asked for.

    Attributes:
        rows: how many rows went through to each depth's cut.
        teacher: another frozen network that sees the same images; None: there is none.
    """

    def __init__(
        self, stages: Stages, normalize: Normalize, chunk: int, precision: torch.dtype, *, compiled: bool = False
    ) -> None:
        self.stages, self.normalize, self._chunk, self._precision = stages, normalize, chunk, precision
        self.compiled = compiled
        self.rows: Counter[Depth] = Counter()
        self.teacher: Teacher | None = None
        self._parts: dict[tuple[Depth, Depth], Callable[[Tensor], Tensor] | None] = {}

    @property
    def always(self) -> tuple[Depth, ...]:
        """What training asks for beside its depths."""
        return () if self.teacher is None else (TEACHER,)

    def taps(self, images_NHWC: Tensor, depths: Collection[Depth]) -> dict[Depth, Tensor]:
        """The input of the suffix at each depth, from uint8 images on the device; one pass feeds them all."""
        return self.onward(self.normalize(images_NHWC), self.stages.num_stages, depths)

    @torch.no_grad()
    def onward(self, inputs: Tensor, depth: Depth, depths: Collection[Depth]) -> dict[Depth, Tensor]:
        """The same from the input of the suffix at `depth`, which is the deepest of them or deeper.

        With TEACHER among the depths, the inputs are images.
        """
        found: dict[Depth, Tensor] = {}
        with autocast(inputs.device, self._precision):
            if TEACHER in depths:
                assert self.teacher is not None
                found[TEACHER] = self.teacher(inputs)
                depths = [each for each in depths if each != TEACHER]
            for target in self._way(depth, depths):
                part, outputs = self._part(depth, target), inputs
                if part is not None:
                    outputs = in_chunks(part, inputs, self._chunk)
                if target in depths:
                    found[target] = outputs
                    self.rows += Counter({target: len(inputs)} if part is not None else {})
                if not self.compiled or self._ends_a_stage(target):
                    inputs, depth = outputs, target
        return found

    def _way(self, start: Depth, depths: Collection[Depth]) -> list[Depth]:
        """The depths to go through, in order: those asked for; if compiled, the ends of all stages before them too."""
        if not self.compiled or not depths:
            return self.stages.deepest_first(depths)
        ends = range(self.stages.num_stages) if self.stages.cuttable else ()
        way = self.stages.deepest_first(dict.fromkeys([start, *ends, *depths]))
        last = max(index for index, depth in enumerate(way) if depth in depths)
        return way[way.index(start) : last + 1]

    def _ends_a_stage(self, depth: Depth) -> bool:
        return isinstance(self.stages.canonical(depth), int)

    def _part(self, deep: Depth, shallow: Depth) -> Callable[[Tensor], Tensor] | None:
        if (deep, shallow) not in self._parts:
            part = self.stages.between(deep, shallow)
            frozen = part if part is None else part.eval().requires_grad_(False)
            self._parts[deep, shallow] = compiled(frozen) if self.compiled and frozen is not None else frozen
        return self._parts[deep, shallow]
