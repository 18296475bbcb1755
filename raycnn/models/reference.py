"""Small networks of our own, for tests, first steps and sources of transfer; they have no pretrained weights.

Each is a plain sequence that ends in a module `head`, takes float32[N, 3, S, S] and gives logits_NK. Where a network
flattens what it has, an average pool comes before, which changes nothing at its native size and lets other sizes in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from torch import Tensor, nn

from raycnn.data.transforms import Preprocessing


def lenet(num_classes: int = 10) -> nn.Module:
    """LeNet-5 for 32x32 colour images.

    LeCun et al., Gradient-based learning applied to document recognition, 1998, with the layer names of its
    figure 2; ReLU, max pooling, a fully connected C3 and a linear output in place of their forerunners.
    """
    return _sequence(
        c1=nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU()),
        s2=nn.MaxPool2d(2),
        c3=nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU()),
        s4=nn.MaxPool2d(2),
        c5=nn.Sequential(nn.Conv2d(16, 120, 5), nn.ReLU()),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=_sequence(f6=nn.Linear(120, 84), relu=nn.ReLU(), output=nn.Linear(84, num_classes)),
    )


def conv4(num_classes: int = 2) -> nn.Module:
    """Four 3x3 convolutions of 32, 64, 128 and 128 channels, each pooled, and a layer of 512; for 150x150.

    Chollet, Deep Learning with Python, 2017, listing 5.5, with N logits in place of one sigmoid.
    """
    return _sequence(
        conv1=_pooled(3, 32),
        conv2=_pooled(32, 64),
        conv3=_pooled(64, 128),
        conv4=_pooled(128, 128),
        pool=nn.AdaptiveAvgPool2d(7),
        flatten=nn.Flatten(),
        head=_dense(128 * 7 * 7, 512, num_classes),
    )


def conv3(num_classes: int = 10) -> nn.Module:
    """Three 3x3 convolutions of 32, 64 and 64 channels, two of them pooled, and a layer of 64; for 32x32 in colour.

    TensorFlow's tutorial "Convolutional Neural Network (CNN)".
    """
    return _sequence(
        conv1=_pooled(3, 32),
        conv2=_pooled(32, 64),
        conv3=nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU()),
        pool=nn.AdaptiveAvgPool2d(4),
        flatten=nn.Flatten(),
        head=_dense(64 * 4 * 4, 64, num_classes),
    )


def digits(num_classes: int = 10) -> nn.Module:
    """Two 3x3 convolutions of 32 and 64 channels, dropout and a layer of 128, for gray 28x28.

    PyTorch's example "Basic MNIST".
    """
    return _sequence(
        gray=Gray(),
        conv1=nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU()),
        conv2=_pooled(32, 64),
        pool=nn.AdaptiveAvgPool2d(12),
        dropout=nn.Dropout(0.25),
        flatten=nn.Flatten(),
        head=_sequence(
            hidden=nn.Linear(64 * 12 * 12, 128),
            relu=nn.ReLU(),
            dropout=nn.Dropout(0.5),
            output=nn.Linear(128, num_classes),
        ),
    )


def rows(num_classes: int = 10, *, cell: Callable[..., nn.RNNBase]) -> nn.Module:
    """A recurrent network that reads a gray 28x28 image row by row, from the top; two layers of 128.

    Le et al., A simple way to initialize recurrent networks of rectified linear units, 2015, read digits so, pixel by
    pixel; cells of Hochreiter and Schmidhuber, Long short-term memory, 1997, and of Cho et al., Learning phrase
    representations, 2014. What comes out after the last row goes to the class layer. One stage: all rows share it.
    """
    return _sequence(
        gray=Gray(),
        pool=nn.AdaptiveAvgPool2d(28),
        rows=nn.Flatten(0, 1),
        recurrent=LastOf(cell(28, 128, num_layers=2, batch_first=True)),
        head=nn.Linear(128, num_classes),
    )


class Gray(nn.Module):
    """float32[N, 3, H, W] to [N, 1, H, W]: the mean over the channels."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """The mean over the channels."""
        return images_NCHW.mean(1, keepdim=True)


class LastOf(nn.Module):
    """float32[N, T, C] to [N, D]: what a recurrent layer says after the last of T."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sequence_NTC: Tensor) -> Tensor:
        """The layer's last output."""
        outputs_NTD: Tensor = self.layer(sequence_NTC)[0]
        return outputs_NTD[:, -1]


def _sequence(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _pooled(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.MaxPool2d(2))


def _dense(inputs: int, width: int, num_classes: int) -> nn.Sequential:
    return _sequence(hidden=nn.Linear(inputs, width), relu=nn.ReLU(), output=nn.Linear(width, num_classes))


@dataclass(frozen=True)
class Reference:
    """A network's constructor, which takes num_classes, and the side of its images."""

    build: Callable[..., nn.Module]
    image_size: int

    @property
    def preprocessing(self) -> Preprocessing:
        """All pixels of the image, from -1 to 1."""
        half = (0.5, 0.5, 0.5)
        return Preprocessing(self.image_size, crop_fraction=1.0, interpolation="bilinear", mean=half, std=half)


NETWORKS: Final[Mapping[str, Reference]] = MappingProxyType(
    {
        "lenet": Reference(lenet, 32),
        "conv4": Reference(conv4, 150),
        "conv3": Reference(conv3, 32),
        "digits": Reference(digits, 28),
        "rows_lstm": Reference(partial(rows, cell=nn.LSTM), 28),
        "rows_gru": Reference(partial(rows, cell=nn.GRU), 28),
    }
)
"""By name."""
