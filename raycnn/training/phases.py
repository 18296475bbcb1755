"""The unfreezing depth as a function of the global step, so that a resumed run cannot be at another one."""

from __future__ import annotations

from raycnn.config import Phase
from raycnn.data.plan import Plan
from raycnn.models.stages import Depth

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


def deepest(unfreeze: Unfreeze) -> Depth:
    """The depth whose stages hold every parameter that ever trains."""
    if not isinstance(unfreeze, tuple):
        return unfreeze
    depths = [phase.depth for phase in unfreeze]
    return "all" if "all" in depths else max(depth for depth in depths if depth != "all")
