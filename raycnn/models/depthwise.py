"""Depthwise convolutions on CPUs, in a form whose gradient is fast."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution whose gradient of the weight is fast where its output is smaller than its kernel.

    oneDNN's kernel for that gradient is slow there (5x5 on 4x4: 15 to 50 ms, its forward pass 3 ms), so it is made by
    a forward pass: the gradient of one image is its input convolved with the gradient of its output.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (weight.requires_grad and torch.is_grad_enabled() and self._small(input)):
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        output = _Depthwise.apply(input, weight, self.padding)
        return output if bias is None else output + bias[:, None, None]

    def _small(self, input: Tensor) -> bool:
        assert not isinstance(self.padding, str)
        sizes = zip(input.shape[2:], self.padding, self.kernel_size, strict=True)
        return any(size + 2 * pad - kernel + 1 < kernel for size, pad, kernel in sizes)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.padding = padding
        return F.conv2d(input, weight, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (input, weight), padding, (grad,) = ctx.saved_tensors, ctx.padding, grads
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = conv2d_input(  # type: ignore[no-untyped-call]
                input.shape, weight, grad, padding=padding, groups=len(weight)
            )
        found = _grad_weight(input, grad, padding).as_strided(weight.shape, weight.stride())  # else DDP copies it
        return grad_input, found, None


def _grad_weight(input: Tensor, grad: Tensor, padding: tuple[int, int]) -> Tensor:
    """Gradient of the weight, by one convolution in which every channel of every image is a channel of its own."""
    inputs = input.permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1)[None]  # 1, images * channels, H, W in channels_last
    kernels = grad.permute(2, 3, 0, 1).flatten(2).permute(2, 0, 1)[:, None]
    each = F.conv2d(inputs, kernels, padding=padding, groups=len(kernels))
    return each.view(*input.shape[:2], 1, *each.shape[2:]).sum(0)


def speed_up_depthwise(module: nn.Module) -> None:
    """Let the depthwise convolutions inside of the module be DepthwiseConv2d; parameters and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _depthwise(layer):
            layer.__class__ = DepthwiseConv2d


def _depthwise(layer: nn.Conv2d) -> bool:
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    single = layer.groups == layer.in_channels == layer.out_channels > 1
    return single and zeros and layer.stride == layer.dilation == (1, 1)
