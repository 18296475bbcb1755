"""BatchNorm's statistics of the images at hand, before a run's first step.

A frozen network is told of images with another mean or contrast than its own by their statistics alone: Li et al.,
Revisiting batch normalization for practical domain adaptation, 2016. They are the plain average over chunks, as in
`torch.optim.swa_utils.update_bn`; chunks have one size and their rows are in the order of the plan, so that the bits
depend neither on the number of workers nor on who computed what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from raycnn.cluster import division
from raycnn.config import Config
from raycnn.data.dataset import ScanOrder, batches_of, blocks
from raycnn.data.keyed import derive_seed
from raycnn.data.manifest import Index
from raycnn.data.plan import Plan
from raycnn.data.reader import PADDING, ImageReader
from raycnn.data.sources import list_images
from raycnn.errors import ConfigError, DataError
from raycnn.models.batchnorm import batch_statistics, set_statistics, with_statistics
from raycnn.models.weights import load_state
from raycnn.training.device import memory_format, prepare, to_device
from raycnn.training.serialize import decode_weights, encode_weights
from raycnn.training.setup import Body
from raycnn.training.state import NetworkFacts

Block = dict[str, npt.NDArray[Any]]
_WHERE: Final = "model.recalibrate"
_TASK_CPUS: Final = 0.4  # packs that start at the same time leave half of the CPUs, trials a little less
_ACTOR_CPUS: Final = 0.01
_LEAST: Final = 2  # rows of a chunk that have a variance


def recalibrate(
    module: nn.Module, config: Config, facts: NetworkFacts, index: Index, say: Callable[[str], None]
) -> None:
    """Set the statistics of the module's BatchNorm layers, in place, to those of the rows that the config names.

    Needs an initialised Ray. Images that cannot be read are left out.

    Raises: as `recalibrate_on`.
    """
    source, table = index.source, index.rows("train")
    if config.model.recalibrate != "train":
        source, table = list_images(config.model.recalibrate)
    read = recalibrate_on(module, config, facts, source, table)
    say(f"{facts.name}: BatchNorm statistics of {read} images of {source}")


def recalibrate_on(module: nn.Module, config: Config, facts: NetworkFacts, source: str, table: pa.Table) -> int:
    """The same with the rows of a table; how many of them could be read.

    Raises:
        ConfigError: a network without such layers.
        DataError: no rows, or more of them unreadable than data.bad_image_budget.
    """
    if not with_statistics(module):
        raise ConfigError(f"{facts.name} has no BatchNorm statistics", where=_WHERE, fix="use none")
    if len(table) < _LEAST:
        raise DataError("no images to take statistics of", where=f"{_WHERE}: {source}", fix="check the path")
    rows, _ = Plan(len(table), len(table), derive_seed(config.train.seed, "data")).share(0)
    reader = ImageReader.of(config.data, source, facts.preprocessing)
    found = list(_chunks(module, config, facts, reader, table.take(rows)))
    read = sum(count for _, count in found)
    if len(table) - read > config.data.bad_image_budget * len(table):
        what = f"{len(table) - read} of {len(table)} images cannot be read"
        raise DataError(what, where=f"{_WHERE}: {source}", fix="see data.bad_image_budget")
    whole = [(statistics_S, count) for statistics_S, count in found if count >= _LEAST]
    if not whole:
        raise ConfigError("a chunk of one image has no variance", where="train.chunk", fix="use 2 or more")
    set_statistics(module, torch.from_numpy(average(whole)), len(whole))
    return read


def average(found: list[tuple[npt.NDArray[np.float32], int]]) -> npt.NDArray[np.float64]:
    """The mean of chunks' statistics, each as often as it has rows, summed in their order in float64."""
    total = np.zeros(len(found[0][0]))
    for statistics_S, count in found:
        total += statistics_S.astype(np.float64) * count
    return total / sum(count for _, count in found)


def _chunks(
    module: nn.Module, config: Config, facts: NetworkFacts, reader: ImageReader, table: pa.Table
) -> list[tuple[npt.NDArray[np.float32], int]]:
    """(statistics_S, rows that could be read) of each chunk of the table, in order."""
    import ray

    order = ScanOrder.shared_out(len(table), facts.chunk, config.train.workers)
    dataset = blocks(reader, table, order, task_cpus=_TASK_CPUS, first=0, last=order.num_blocks)
    dataset = dataset.map_batches(
        Calibrator,
        fn_constructor_args=(ray.put(encode_weights(module.state_dict())), config, facts),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(config.train.workers, order.num_blocks)),
        num_cpus=_ACTOR_CPUS,
        num_gpus=1 if division(config.train.workers).gpus else 0,
    )
    return [
        (statistics_S, int(count))
        for got in batches_of(dataset, batch_size=None)
        for statistics_S, count in zip(got["statistics"], got["count"], strict=True)
    ]


class Calibrator:
    """The network in one actor: blocks of images to the statistics of their chunks."""

    def __init__(self, weights: Any, config: Config, facts: NetworkFacts) -> None:
        import ray

        self._device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        prepare(self._device, config.train.threads)
        self._body, self._chunk = Body(config, facts, self._device), facts.chunk
        load_state(self._body.module, decode_weights(ray.get(weights)), where="weights")

    def __call__(self, block: Block) -> Block:
        """Columns image, row, reason, error to a row for each chunk: statistics, count, error."""
        places = range(0, len(block["row"]), self._chunk)
        found = [self._statistics(block, slice(start, start + self._chunk)) for start in places]
        return {
            "statistics": np.stack([statistics_S for statistics_S, _ in found]),
            "count": np.array([count for _, count in found]),
            "error": block["error"][:: self._chunk],
        }

    def _statistics(self, block: Block, chunk: slice) -> tuple[npt.NDArray[np.float32], int]:
        good = (block["row"][chunk] != PADDING) & (block["reason"][chunk] == "")
        if good.sum() < _LEAST:
            width = 2 * sum(layer.num_features for layer in with_statistics(self._body.module))
            return np.zeros(width, np.float32), int(good.sum())
        images = self._body.prefix.normalize(to_device(block["image"][chunk][good], self._device))
        inputs = images.contiguous(memory_format=memory_format(images))
        return batch_statistics(self._body.module, inputs).cpu().numpy(), int(good.sum())
