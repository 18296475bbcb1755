"""A checkpoint over rows of images through Ray Data: decoding tasks feed actors that hold the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raycnn.cluster import division
from raycnn.config import Config, Given
from raycnn.config.base import Tta
from raycnn.config.given import NOTHING
from raycnn.data.dataset import ScanOrder, batches_of, blocks
from raycnn.data.here import Block, BlocksHere, are_few
from raycnn.data.reader import PADDING, ImageReader
from raycnn.results.classifier import Classifier
from raycnn.results.tta import tta_outputs, tta_preprocessing
from raycnn.storage import Store
from raycnn.training import checkpoint
from raycnn.training.calibration import Calibration
from raycnn.training.checkpoint import Commit
from raycnn.training.device import prepare
from raycnn.training.run import read_state
from raycnn.training.state import TrainState

_PENDING: Final = 2  # blocks sent to an actor at a time: one to score, one to wait


@dataclass(frozen=True)
class Scored:
    """Scores of some rows, in the order of the table.

    rows: int64[N]; logits_NK: float32, zeros for an unreadable row; reasons: why it is that, "" where it is not.
    """

    rows: npt.NDArray[np.int64]
    logits_NK: npt.NDArray[np.float32]
    reasons: npt.NDArray[np.str_]


def read_classifier(
    store: Store, commit: Commit, precision: str, device: torch.device, given: Given = NOTHING
) -> Classifier:
    """A checkpoint's network, its files verified; one that is in no zoo has to be given."""
    files = checkpoint.verified(store, commit, ["state.json", "weights.safetensors"])
    facts = TrainState.decode(files["state.json"]).network
    network = Classifier.load(files["weights.safetensors"], facts, precision, device, given)
    network.calibration = Calibration.of(commit.manifest.get("calibration"))
    return network


def infer(
    config: Config, store: Store, commit: Commit, source: str, table: pa.Table, start: int = 0,
    scorers: Sequence[Any] = (), tta: Tta = "none",
) -> Iterator[Scored]:  # fmt: skip
    """Scores of every row of `table` by a checkpoint, in order; the bits do not depend on the number of workers.

    Args:
        config: of the run; workers, threads and limits are taken from it.
        store: the run's folder.
        commit: the checkpoint; each worker reads it by itself.
        source: uri that the table's keys are relative to.
        table: with the columns COLUMNS.
        start: rows to leave out, as many as were got before.
        scorers: actors that are there, with the method `Pack.score`; without any, new ones.
        tta: of new actors.
    """
    if start == len(table):
        return
    facts, workers = read_state(store, commit).network, config.train.workers
    config.given.require(facts.name)
    reader = ImageReader.of(config.data, source, tta_preprocessing(facts.preprocessing, tta))
    work = by_new_actors(Scorer, (store, commit, config, tta), workers)
    if scorers:
        work = _sent_to(scorers, store, commit, config)
    for got in scan(reader, table, facts.chunk, workers, work, start, here=bool(scorers)):
        yield Scored(got["row"], got["logits"], got["reason"])


Work = Callable[[Any, int], Iterator[Block]]
"""What makes of a dataset of decoded blocks, and of their number, the blocks of its outputs in the same order."""


def scan(
    reader: ImageReader, table: pa.Table, chunk: int, workers: int, work: Work, start: int = 0, *, here: bool = False
) -> Iterator[Block]:
    """What `work` says of every row of `table` from `start` on, in order and without padding.

    Where `here`, the work only iterates over the dataset, so that few rows may be read by this process.
    """
    if start == len(table):
        return
    order = ScanOrder.shared_out(len(table), chunk, workers)
    first = start // (order.chunks_per_block * order.chunk)
    dataset: Any = BlocksHere(reader, table, order, first, order.num_blocks)
    if not (here and are_few(table, order)):
        dataset = blocks(reader, table, order, task_cpus=division(workers).task, first=first, last=order.num_blocks)
    for got in work(dataset, order.num_blocks - first):
        real = (got["row"] != PADDING) & (got["row"] >= start)
        yield {name: column[real] for name, column in got.items()}


def by_new_actors(actor: type, arguments: tuple[Any, ...], workers: int) -> Work:
    """Actors of the class, at most as many as workers, each with as much of the machine as a rank has."""

    def work(dataset: Any, num_blocks: int) -> Iterator[Block]:
        import ray

        cpus = division(workers)
        dataset = dataset.map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=min(workers, num_blocks)),
            num_cpus=cpus.per_rank,
            num_gpus=1 if cpus.gpus else 0,
        )
        return batches_of(dataset, batch_size=None)

    return work


def _sent_to(scorers: Sequence[Any], store: Store, commit: Commit, config: Config) -> Work:
    def work(dataset: Any, num_blocks: int) -> Iterator[Block]:
        import ray

        pending: deque[Any] = deque()
        told = ray.put(config)  # once: it may hold a whole network
        for number, block in enumerate(batches_of(dataset, batch_size=None)):
            if len(pending) == _PENDING * len(scorers):
                yield ray.get(pending.popleft())
            pending.append(scorers[number % len(scorers)].score.remote(store, commit, told, block))
        for scored in pending:
            yield ray.get(scored)

    return work


class Scorer:
    """The network in one actor: blocks of images to logits, in chunks of the checkpoint's fixed size."""

    def __init__(self, store: Store, commit: Commit, config: Config, tta: Tta = "none") -> None:
        import ray

        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        prepare(device, config.train.threads)
        self._tta = tta
        self.network = read_classifier(store, commit, config.train.precision, device, config.given)

    def __call__(self, block: Block) -> Block:
        """Columns image, row, reason to row, reason, logits."""
        size = self.network.preprocessing.image_size
        logits_NK = tta_outputs(self.network.logits, block["image"], size, self._tta, self.network.problem.task)
        logits_NK[block["reason"] != ""] = 0
        return {"row": block["row"], "reason": block["reason"], "error": block["error"], "logits": logits_NK}
