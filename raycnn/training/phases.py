"""The unfreezing depth as a function of the global step, so that a resumed run cannot be at another one."""

from __future__ import annotations

from raycnn.config import Depth, ModelConfig, Phase
from raycnn.data.plan import Plan
from raycnn.models.stages import Stages

Unfreeze = Depth | tuple[Phase, ...]


def unfreeze_of(model: ModelConfig, stages: Stages) -> Unfreeze:
    """model.unfreeze with its presets written out as phases for a network.

    gradual: Howard and Ruder, "Universal Language Model Fine-tuning", 2018, one more stage at a time; lp-ft: Kumar et
    al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", 2022, linear probing, then
    fine-tuning.
    """
    presets: dict[str, list[Depth]] = {"gradual": [*range(stages.num_stages), "all"], "lp-ft": [0, "all"]}
    if model.unfreeze not in presets:
        return model.unfreeze
    return tuple(Phase(depth=depth, epochs=model.unfreeze_epochs) for depth in presets[str(model.unfreeze)])


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
