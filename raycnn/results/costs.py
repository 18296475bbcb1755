"""What a network costs on this machine: time for an image to get to each cut, parameters, multiplications."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from raycnn.config import Config
from raycnn.training.device import prepare, to_device
from raycnn.training.prefix import Prefix
from raycnn.training.setup import Body
from raycnn.training.state import NetworkFacts

_REPEATS: Final = 5
_BACKWARD: Final = 2  # forward passes that a backward pass costs: gradients of inputs and of weights


@dataclass(frozen=True)
class Costs:
    """Of a network.

    Args:
        ms: milliseconds that one image of a chunk takes from its pixels to the cut of each depth.
        trainable: parameters that train at each depth.
        parameters: of the whole network.
        megabytes: of its parameters and buffers.
        macs: multiplications and additions of one image.
    """

    ms: Mapping[int, float]
    trainable: Mapping[int, int]
    parameters: int
    megabytes: float
    macs: int

    def of(self, depth: int) -> tuple[float, float, int]:
        """(ms to the cut, estimated ms of training at this depth, parameters that train)."""
        to_cut, whole = self.ms[depth], self.ms[0]
        return to_cut, to_cut + (1 + _BACKWARD) * (whole - to_cut), self.trainable[depth]

    def as_json(self) -> dict[str, Any]:
        """For the result."""
        facts = {"parameters": self.parameters, "megabytes": round(self.megabytes, 1), "macs": self.macs}
        return facts | {"ms": round(self.ms[0], 3)}


def measure(config: Config, networks: Sequence[NetworkFacts]) -> list[Costs]:
    """The costs of each, with train.threads on this process's device: the least time of five chunks, since whatever
    else computes only adds to it.
    """
    import ray

    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    prepare(device, config.train.threads)
    return [_measure(Body(config, facts, device), facts) for facts in networks]


def _measure(body: Body, facts: NetworkFacts) -> Costs:
    stages, size = body.stages, facts.preprocessing.image_size
    sizes = [stage.parameters for stage in reversed(stages.stages)]
    images_NHWC = np.zeros((facts.chunk, size, size, 3), np.uint8)
    state = body.module.state_dict().values()
    body.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        body.module(body.prefix.normalize(to_device(images_NHWC[:1], body.device)))
    return Costs(
        ms=_milliseconds(body.prefix, images_NHWC, body.device),
        trainable={depth: stages.head.parameters + sum(sizes[:depth]) for depth in range(stages.num_stages + 1)},
        parameters=stages.head.parameters + sum(sizes),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6,
        macs=counter.get_total_flops() // 2,
    )


def _milliseconds(prefix: Prefix, images_NHWC: Any, device: torch.device) -> dict[int, float]:
    """One image's, to the cut of each depth: what the parts between the cuts take, added up."""
    deepest = prefix.stages.num_stages
    runs = [_parts(prefix, images_NHWC, device) for _ in range(_REPEATS + 1)][1:]  # the first one warms up
    parts = [1000 * min(times) / len(images_NHWC) for times in zip(*runs, strict=True)]
    return {deepest - place: sum(parts[: place + 1]) for place in range(deepest + 1)}


def _parts(prefix: Prefix, images_NHWC: Any, device: torch.device) -> list[float]:
    """Seconds of normalising, and of each part from cut to cut."""
    seconds, depth = [], prefix.stages.num_stages
    start = _now(device)
    inputs = prefix.normalize(to_device(images_NHWC, device))
    seconds.append(_now(device) - start)
    for target in range(depth - 1, -1, -1):
        start = _now(device)
        inputs = prefix.onward(inputs, depth, [target])[target]
        seconds.append(_now(device) - start)
        depth = target
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
