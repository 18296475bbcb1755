"""Weights and optimizer state as bytes: equal states give equal bytes, and reading them runs no code."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from raycnn.errors import CheckpointError
from raycnn.models.plain import load_plain


def encode_weights(state: Mapping[str, Tensor]) -> bytes:
    """Tensors by name, on any device and in any memory format, in the safetensors format."""
    return safetensors.torch.save({name: _own(tensor) for name, tensor in state.items()})


def decode_weights(data: bytes) -> dict[str, Tensor]:
    """The tensors by name, on the CPU and contiguous.

    Raises:
        CheckpointError: not a safetensors file.
    """
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"not a safetensors file: {error}", fix="use another step or another file") from None


def encode_optimizer(state: Mapping[str, Any]) -> bytes:
    """A nest of dictionaries, lists, tuples, numbers, strings and tensors, as `torch.save` writes it."""
    buffer = io.BytesIO()
    torch.save(_canonical(state), buffer)
    return buffer.getvalue()


def decode_optimizer(data: bytes) -> dict[str, Any]:
    """The inverse of `encode_optimizer`, tensors on the CPU.

    Raises:
        CheckpointError: not such a file, or one that asks for more than tensors and plain values, unrun.
    """
    fix = "use another step; a file with other content may be an attack"
    try:
        state = load_plain(data)
    except Exception as error:  # hostile bytes make torch.load fail in every way there is
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"refused an optimizer state: {reason}", fix=fix) from None
    if not isinstance(state, dict):
        raise CheckpointError("refused an optimizer state: not a dictionary", fix=fix)
    return state


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares its memory with no other tensor."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _canonical(value: Any) -> Any:
    # A pickle writes an object that it has met before as a reference, so its bytes depend on which equal
    # strings and tuples are one object; that differs between a run and its resumption.
    if isinstance(value, Tensor):
        return _own(value)
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_canonical(item) for item in value])
    return sys.intern(value) if isinstance(value, str) else value
