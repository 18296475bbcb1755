"""The unfreezing depth as a function of the global step, so that a resumed run cannot be at another one."""

from __future__ import annotations

from raycnn.config import Depth, Phase
from raycnn.data.plan import Plan
from raycnn.models.stages import Stages

Unfreeze = Depth | tuple[Phase, ...]


def depth_at(step: int, unfreeze: Unfreeze, plan: Plan) -> Depth:
    """The depth that step trains at; the last phase goes on to the end."""
    if not isinstance(unfreeze, tuple):
        return unfreeze
    until = 0.0
    for phase in unfreeze[:-1]:
        until += phase.epochs
        if step < plan.steps(until):
            return phase.depth
    return unfreeze[-1].depth


def deepest(unfreeze: Unfreeze, stages: Stages) -> Depth:
    """The depth whose stages hold every parameter that ever trains, under its one name in this network."""
    depths = [phase.depth for phase in unfreeze] if isinstance(unfreeze, tuple) else [unfreeze]
    return stages.canonical(stages.deepest_first(depths)[0])
