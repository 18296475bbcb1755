"""Train and eval mode of a split network, what its BatchNorm layers do meanwhile, and statistics of other images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raycnn.errors import ConfigError
from raycnn.models.stages import Split


def set_mode(split: Split, batchnorm: Literal["frozen", "local", "sync"]) -> None:
    """Make the suffix train and the prefix stand still: eval mode, no gradients, no moving statistics.

    The suffix's BatchNorm layers train their weight and bias under every policy. Their statistics stay as they
    are (frozen), follow this rank's batches (local), or the batches of all ranks (sync, which puts SyncBatchNorm
    in their place and so comes before the DDP wrap).

    Raises:
        ConfigError: sync without a GPU, which SyncBatchNorm refuses.
    """
    if split.prefix is not None:
        split.prefix.eval().requires_grad_(False)
    split.suffix.train().requires_grad_(True)
    layers = [layer for layer in split.suffix.modules() if isinstance(layer, _BatchNorm)]
    if batchnorm == "frozen":
        for layer in layers:
            layer.training = False
    elif batchnorm == "sync" and layers:
        if any(parameter.device.type == "cpu" for parameter in split.suffix.parameters()):
            raise ConfigError("sync needs GPUs", where="model.batchnorm", fix="use frozen or local")
        synchronise(split.suffix)


def with_statistics(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep statistics, in the order of their registration."""
    return [each for each in module.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]


def learnt_statistics(module: nn.Module) -> bool:
    """Whether it has no such layers, or their statistics are not all those of layers just made."""
    layers = with_statistics(module)
    return not layers or any(bool(_mean(layer).any()) for layer in layers)


@torch.no_grad()
def batch_statistics(module: nn.Module, inputs: Tensor) -> Tensor:
    """Mean and variance (unbiased) of what comes to each BatchNorm layer, which normalises by them on the way.

    Returns:
        float32[S], layer by layer. The statistics that the module has are lost.
    """
    module.eval()
    layers = with_statistics(module)
    for layer in layers:
        layer.training, layer.momentum = True, 1.0  # nothing is left of the batch before
    module(inputs)
    return torch.cat([tensor for layer in layers for tensor in (_mean(layer), _variance(layer))])


@torch.no_grad()
def set_statistics(module: nn.Module, statistics_S: Tensor, num_batches: int) -> None:
    """The inverse of `batch_statistics`: statistics into the module's layers."""
    layers = with_statistics(module)
    tensors = [tensor for layer in layers for tensor in (_mean(layer), _variance(layer))]
    for tensor, values in zip(tensors, torch.split(statistics_S, [len(tensor) for tensor in tensors]), strict=True):
        tensor.copy_(values)
    for layer in layers:
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(num_batches)


def _mean(layer: _BatchNorm) -> Tensor:
    assert layer.running_mean is not None
    return layer.running_mean


def _variance(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    return layer.running_var


def synchronise(module: nn.Module) -> None:
    """Put SyncBatchNorm in the place of BatchNorm inside of the module, with the same parameters and buffers."""
    if any(type(layer).__module__.startswith("timm.") for layer in module.modules()):
        from timm.layers.norm_act import convert_sync_batchnorm  # knows timm's layers of norm and activation in one

        convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
