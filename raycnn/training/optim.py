"""The optimizer, its groups of parameters, and its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from raycnn.config import OptimConfig
from raycnn.models.stages import Stages
from raycnn.training.lamb import Lamb

Named = tuple[str, nn.Parameter]


def build_optimizer(
    named_parameters: Iterable[Named], config: OptimConfig, scales: Mapping[str, float] | None = None
) -> Optimizer:
    """The optimizer over `named_parameters`, with weight decay on matrices and kernels alone.

    Norms and biases, i.e. parameters with at most one axis, are not decayed (He et al., "Bag of Tricks for
    Image Classification", 2019). SGD, Adam and RMSprop add the decay to the gradient; AdamW keeps it apart (Loshchilov
    and Hutter, 2019), and so does LAMB.

    Args:
        named_parameters: all that ever train; a parameter without gradient is left alone by a step.
        config: the optim section; its lr is the one to start from, `set_rates` sets each step's.
        scales: factor of the learning rate by name, see `stage_scales`; None: 1.

    Returns:
        An optimizer with two groups, decayed and not, each in the order given; with `scales` these are cut where the
        factor changes. So the parameters have one order, whatever the factors.
    """
    named = list(named_parameters)
    groups: list[dict[str, Any]] = []
    for decayed in (True, False):
        chosen = [(name, parameter) for name, parameter in named if (parameter.ndim > 1) is decayed]
        decay = {"weight_decay": config.weight_decay if decayed else 0.0}
        groups += [{"params": own, **decay, **scale} for own, scale in _cut(chosen, scales)]
    # torch's own choice depends on its version; equal bits need the same kernels after a resume
    foreach = all(parameter.is_cuda for _, parameter in named)
    betas = (config.momentum, 0.999)
    match config.name:
        case "sgd":
            return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, foreach=foreach)
        case "rmsprop":
            return RMSprop(groups, lr=config.lr, momentum=config.momentum, foreach=foreach)
        case "lamb":
            return Lamb(groups, lr=config.lr, betas=betas)
        case "adam":
            return Adam(groups, lr=config.lr, betas=betas, foreach=foreach, fused=False)
        case "adamw":
            return AdamW(groups, lr=config.lr, betas=betas, foreach=foreach, fused=False)


def stage_scales(stages: Stages, decay: float) -> dict[str, float] | None:
    """Factor of the learning rate by parameter name: 1 in the head, `decay` times that of the next in each stage.

    Discriminative fine-tuning (Howard and Ruder, "Universal Language Model Fine-tuning", 2018). None for a decay of 1.
    """
    if decay == 1:
        return None
    ordered = (stages.head, *reversed(stages.stages))
    return {name: decay**number for number, stage in enumerate(ordered) for name in stage.parameter_names}


def set_rates(optimizer: Optimizer, lr: float, momentum: float | None = None) -> None:
    """Have the next step use this learning rate, times each group's factor, and this momentum or first beta."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], config: OptimConfig) -> None:
    """Go on from the state dict of an optimizer over the same parameters, maybe with other settings or groups.

    What the settings decide stays as it was built; the rates of the last step come along where the groups are the same.

    Raises:
        ValueError, LookupError, ...: not such a state.
    """
    own = optimizer.state_dict()["param_groups"]
    theirs = saved["param_groups"]
    sizes = [[len(group["params"]) for group in groups] for groups in (own, theirs)]
    if sum(sizes[0]) != sum(sizes[1]):
        raise ValueError(f"it holds {sum(sizes[1])} parameters, this network trains {sum(sizes[0])}")
    if sizes[0] == sizes[1]:
        rates = ("lr", "momentum", "betas") if config.schedule == "onecycle" else ("lr",)
        pairs = zip(own, theirs, strict=True)
        own = [{**mine, **{name: other[name] for name in rates if name in mine}} for mine, other in pairs]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})


def _cut(named: list[Named], scales: Mapping[str, float] | None) -> list[tuple[list[nn.Parameter], dict[str, float]]]:
    if scales is None:
        return [([parameter for _, parameter in named], {})]
    runs = groupby(named, key=lambda each: scales[each[0]])
    return [([parameter for _, parameter in run], {"scale": scale}) for scale, run in runs]
