"""A checkpoint over rows of images through Ray Data: decoding tasks feed actors that hold the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raycnn.cluster import division
from raycnn.config import Config
from raycnn.data.dataset import ScanOrder, batches_per_block, blocks
from raycnn.data.decode import Limits
from raycnn.data.reader import PADDING, ImageReader
from raycnn.results.classifier import Classifier
from raycnn.storage import Store
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit
from raycnn.training.state import NetworkFacts, TrainState


@dataclass(frozen=True)
class Scored:
    """Scores of some rows, in the order of the table.

    rows: int64[N]; logits_NK: float32, zeros for an unreadable row; reasons: why it is that, "" where it is not.
    """

    rows: npt.NDArray[np.int64]
    logits_NK: npt.NDArray[np.float32]
    reasons: npt.NDArray[np.str_]


def read_checkpoint(store: Store, commit: Commit) -> tuple[NetworkFacts, bytes]:
    """What a checkpoint's network is, and its weights as safetensors; verified."""
    files = checkpoint.verified(store, commit, ["state.json", "weights.safetensors"])
    return TrainState.decode(files["state.json"]).network, files["weights.safetensors"]


def infer(config: Config, facts: NetworkFacts, weights: bytes, source: str, table: pa.Table) -> Iterator[Scored]:
    """Scores of every row of `table` (keys relative to `source`), in order; the bits do not depend on the workers."""
    import ray

    workers = config.train.workers
    cpus = division(workers)
    reader = ImageReader(
        source,
        facts.preprocessing,
        Limits(config.data.max_pixels, config.data.max_bytes),
        config.data.fetch_threads,
    )
    order = ScanOrder(len(table), facts.chunk, batches_per_block(facts.chunk))
    dataset = blocks(reader, table, order, task_cpus=cpus.task, first=0, last=order.num_blocks)
    dataset = dataset.map_batches(
        Scorer, fn_constructor_args=(ray.put(weights), facts, config), batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=cpus.per_rank, num_gpus=1 if cpus.gpus else 0,
    )  # fmt: skip
    for got in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        real = got["row"] != PADDING
        yield Scored(got["row"][real], got["logits"][real], got["reason"][real])


class Scorer:
    """The network in one actor: blocks of images to logits, in chunks of the checkpoint's fixed size."""

    def __init__(self, weights_ref: Any, facts: NetworkFacts, config: Config) -> None:
        import ray
        import torch

        from raycnn.training.device import set_determinism

        self.device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        set_determinism(self.device, config.train.threads)
        self.network = Classifier.load(ray.get(weights_ref), facts, config.train.precision, self.device)

    def __call__(self, block: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Columns image, row, reason to row, reason, logits."""
        logits_NK = self.network.logits(block["image"])
        logits_NK[block["reason"] != ""] = 0
        return {"row": block["row"], "reason": block["reason"], "logits": logits_NK}
