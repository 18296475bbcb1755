"""Small networks of our own, for tests and first steps; they have no pretrained weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from torch import nn

from raycnn.data.transforms import Preprocessing

PREPROCESSING: Final = Preprocessing(
    image_size=32, crop_fraction=1.0, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def lenet(num_classes: int = 10) -> nn.Module:
    """LeNet-5 for 32x32 colour images: float32[N, 3, 32, 32] to logits_NK.

    LeCun et al., Gradient-based learning applied to document recognition, 1998, with the layer names of its
    figure 2; ReLU, max pooling, a fully connected C3 and a linear output in place of their forerunners.
    """
    layers: dict[str, nn.Module] = {
        "c1": nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU()),
        "s2": nn.MaxPool2d(2),
        "c3": nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU()),
        "s4": nn.MaxPool2d(2),
        "c5": nn.Sequential(nn.Conv2d(16, 120, 5), nn.ReLU()),
        "pool": nn.AdaptiveAvgPool2d(1),  # other input sizes than 32; there it changes nothing
        "flatten": nn.Flatten(),
        "head": nn.Sequential(OrderedDict(f6=nn.Linear(120, 84), relu=nn.ReLU(), output=nn.Linear(84, num_classes))),
    }
    return nn.Sequential(OrderedDict(layers))


NETWORKS: Final[Mapping[str, Callable[..., nn.Module]]] = MappingProxyType({"lenet": lenet})
"""Constructors by name; each takes num_classes."""
