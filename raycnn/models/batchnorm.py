"""Train and eval mode of a split network, and what its BatchNorm layers do meanwhile."""

from __future__ import annotations

from typing import Literal

from torch import nn
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


def synchronise(module: nn.Module) -> None:
    """Put SyncBatchNorm in the place of BatchNorm inside of the module, with the same parameters and buffers."""
    if any(type(layer).__module__.startswith("timm.") for layer in module.modules()):
        from timm.layers.norm_act import convert_sync_batchnorm  # knows timm's layers of norm and activation in one

        convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
