"""What the hardware offers: device, precision, and the way of a batch onto it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raycnn.data.transforms import Preprocessing
from raycnn.errors import ConfigError
from raycnn.memory import keep_freed_memory

Compiled = Literal["none", "prefix", "all"]
"""What torch.compile makes of a network: nothing, its frozen prefix, the steps of its suffix as well."""

_TRITON_SINCE: Final = (7, 0)
_PRECISIONS: Final = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(setting: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: `auto` is bf16 or fp16 on a GPU that has it, float32 elsewhere.

    Raises:
        ConfigError: fp16 on a CPU, which has no gradient scaling.
    """
    if setting == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if setting == "fp16" and device.type != "cuda":
        raise ConfigError("fp16 needs a GPU", where="train.precision", fix="use auto, float32 or bf16")
    return _PRECISIONS[setting]


@dataclass(frozen=True)
class DeviceFacts:
    """What decides whether networks can be compiled for a device.

    Args:
        kind: cpu or cuda.
        missing: what of its machine's software compiling needs and lacks; empty if nothing.
        capability: of a GPU, (major, minor).
    """

    kind: str
    missing: str = ""
    capability: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, device: torch.device) -> DeviceFacts:
        """Of this process's machine."""
        if device.type != "cuda":
            return cls(device.type, _missing(os.environ.get("CXX", "g++"), what="a C++ compiler"))
        missing = _missing(os.environ.get("CC", "gcc"), "clang", what="a C compiler")  # Triton builds its launcher
        if importlib.util.find_spec("triton") is None:
            missing = "Triton"
        return cls("cuda", missing, torch.cuda.get_device_capability(device))


def choose_compiled(setting: str, facts: DeviceFacts) -> Compiled:
    """What to compile: `auto` is the prefix on a GPU that can, nothing elsewhere.

    Raises:
        ConfigError: it was asked for by name and cannot be done here.
    """
    old = facts.kind == "cuda" and facts.capability < _TRITON_SINCE
    missing = "a GPU of compute capability 7.0 or more" if old else facts.missing
    if setting == "auto":
        return "prefix" if facts.kind == "cuda" and not missing else "none"
    if setting != "none" and missing:
        raise ConfigError(f"compiling needs {missing}", where=f"train.compile {setting}", fix="use auto or none")
    return cast(Compiled, setting)


def _missing(*compilers: str, what: str) -> str:
    if not any(map(shutil.which, compilers)):
        return what
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return "" if headers.exists() else f"Python's headers ({headers.name})"


def prepare(device: torch.device, threads: int) -> None:
    """Set this process up to compute: fixed threads, and on a CPU deterministic algorithms and memory that is kept."""
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
        torch.use_deterministic_algorithms(True)
        # filling costs a tenth of the time, and nothing here reads memory that was not written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed(value: int, device: torch.device) -> None:
    """Seed what computing on the device draws from. torch.manual_seed also notes it, each time with a stack trace, for
    every kind of device that there is not: a third of the time of a small head's step."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Autocast to `precision`; nothing for float32."""
    enabled = precision is not torch.float32
    return torch.autocast(device.type, dtype=precision if enabled else None, enabled=enabled)


class Normalize(nn.Module):
    """uint8 images_NHWC to normalised float32 images_NCHW in channels_last, on the images' device."""

    mean: Tensor
    scale: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(preprocessing.std) * 255))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """float32[N, 3, H, W]."""
        width = images_NHWC.shape[2]  # by rows, since a CPU has no vector instructions for three values at a time
        rows = images_NHWC.flatten(2).to(torch.float32, copy=True)
        rows.sub_(self.mean.repeat(width)).mul_(self.scale.repeat(width))
        return rows.view(images_NHWC.shape).permute(0, 3, 1, 2)


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The same on the device, such as uint8 images_NHWC; pinned and not waited for on a GPU."""
    if not values.flags.writeable:  # a view of Ray's shared memory, which torch must not think it owns
        values = values.copy()
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def memory_format(inputs: Tensor) -> torch.memory_format:
    """How a batch lies in memory on every path: images and feature maps in channels_last."""
    return torch.channels_last if inputs.ndim == 4 else torch.contiguous_format


def in_chunks(module: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int) -> Tensor:
    """module(inputs) in passes of exactly `chunk` rows, the last one padded with zeros and trimmed.

    A network's last bits depend on the batch shape; with one shape on every path they do not depend on the path.
    """
    outputs = []
    for start in range(0, len(inputs), chunk):
        part = inputs[start : start + chunk]
        missing = chunk - len(part)
        if missing:
            part = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
        outputs.append(module(part.contiguous(memory_format=memory_format(inputs)))[: chunk - missing])
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
