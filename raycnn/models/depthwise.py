"""Depthwise convolutions on CPUs, in a form whose gradient is fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

_MAX_PAIRS: Final = 4096  # of places; more cost more than oneDNN's way
_COLUMNS: Final = 3  # of a weight, that oneDNN's kernel takes

GradWeight = Callable[[Tensor, Tensor, torch.Size, tuple[int, int]], Tensor]
"""The gradient of a weight, from input and gradient of the output, the weight's shape and the padding."""


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution whose gradient of the weight is fast where oneDNN's is slow.

    Its kernel for that gradient takes weights of up to three columns, and outputs no smaller than the weight. All else
    goes the way of dense convolutions: 5x5 on 7x7 takes 16 ms, where the forward pass takes 1.5 and 5x3 takes 1.3.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trains = weight.requires_grad and torch.is_grad_enabled()
        grad_weight = self._grad_weight(input) if trains and not torch.is_autocast_enabled("cpu") else None
        if grad_weight is None:
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        output = _Depthwise.apply(input, weight, self.padding, grad_weight)
        return output if bias is None else output + bias[:, None, None]

    def _grad_weight(self, input: Tensor) -> GradWeight | None:
        assert not isinstance(self.padding, str)
        sizes = zip(input.shape[2:], self.padding, self.kernel_size, strict=True)
        height, width = (size + 2 * pad - kernel + 1 for size, pad, kernel in sizes)
        if height < self.kernel_size[0] or width < self.kernel_size[1]:
            return _by_pairs if input.shape[2] * input.shape[3] * height * width <= _MAX_PAIRS else None
        return _by_columns if self.kernel_size[1] > _COLUMNS else None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, padding: tuple[int, int], grad_weight: GradWeight) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.padding, ctx.grad_weight = padding, grad_weight
        return F.conv2d(input, weight, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (input, weight), padding, (grad,) = ctx.saved_tensors, ctx.padding, grads
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = conv2d_input(  # type: ignore[no-untyped-call]
                input.shape, weight, grad, padding=padding, groups=len(weight)
            )
        found = ctx.grad_weight(input, grad, weight.shape, padding)
        return grad_input, found.as_strided(weight.shape, weight.stride()), None, None  # else DDP copies it


def _by_columns(input: Tensor, grad: Tensor, shape: torch.Size, padding: tuple[int, int]) -> Tensor:
    """A few columns of the weight at a time: those in the middle by padding alone, others by moving the input."""
    rows, columns = padding
    parts, first = [], 0
    for count in _counts(shape[3]):
        left, right = columns - first, columns - (shape[3] - first - count)
        moved = input if left == right >= 0 else F.pad(input, (left, right))
        pads, part = (rows, left if moved is input else 0), (*shape[:3], count)
        parts.append(conv2d_weight(moved, part, grad, padding=pads, groups=shape[0]))  # type: ignore[no-untyped-call]
        first += count
    return torch.cat(parts, 3)


def _counts(columns: int) -> list[int]:
    """How many columns are made at a time, from the left; as many on the left of the middle as on its right."""
    middle = _COLUMNS if columns % 2 == _COLUMNS % 2 else _COLUMNS - 1
    beside = (columns - middle) // 2
    side = [_COLUMNS] * (beside // _COLUMNS) + [beside % _COLUMNS] * (beside % _COLUMNS > 0)
    return [*side, middle, *side]


def _by_pairs(input: Tensor, grad: Tensor, shape: torch.Size, padding: tuple[int, int]) -> Tensor:
    """Products of every place of the input with every place of the output, added up by the tap that joins them."""
    products = torch.bmm(_by_channel(input).transpose(1, 2), _by_channel(grad))
    taps = _taps(input.shape[2:], grad.shape[2:], shape[2:], padding)
    return (products.flatten(1) @ taps.to(products)).view(shape)


def _by_channel(images_NCHW: Tensor) -> Tensor:
    """[C, N, H * W], by one transposition of a matrix where they are in channels_last."""
    num_images, channels = images_NCHW.shape[:2]
    return images_NCHW.permute(0, 2, 3, 1).reshape(-1, channels).t().contiguous().view(channels, num_images, -1)


def _taps(size: torch.Size, output: torch.Size, kernel: torch.Size, padding: tuple[int, int]) -> Tensor:
    """bool[pairs of a place of the input and one of the output, taps]: whether the tap joins the two."""
    rows, columns = (
        torch.arange(there)[:, None, None] + pad == torch.arange(here)[:, None] + torch.arange(taps)
        for there, here, taps, pad in zip(size, output, kernel, padding, strict=True)
    )
    joined = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
    return joined.flatten(4).flatten(0, 3)


def speed_up_depthwise(module: nn.Module) -> None:
    """Let the depthwise convolutions inside of the module be DepthwiseConv2d; parameters and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _depthwise(layer):
            layer.__class__ = DepthwiseConv2d


def _depthwise(layer: nn.Conv2d) -> bool:
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    single = layer.groups == layer.in_channels == layer.out_channels > 1
    return single and zeros and layer.stride == layer.dilation == (1, 1)
