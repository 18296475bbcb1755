"""What a step trains on: its batch from the plan's stream, and what the frozen prefix makes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from raycnn.config import Depth
from raycnn.data.dataset import Batch, ScanOrder, TrainOrder, batches_per_block, stream
from raycnn.data.manifest import shown_names
from raycnn.data.plan import Plan
from raycnn.data.reader import PADDING, ImageReader
from raycnn.errors import RaycnnError
from raycnn.training.augmenting import DeviceViews, Mix
from raycnn.training.clock import Clock
from raycnn.training.device import to_device
from raycnn.training.losses import Mixed, Targets, Taught
from raycnn.training.prefix import TEACHER, Prefix
from raycnn.training.problems import ONE_LABEL, Problem
from raycnn.training.ranks import Ranks
from raycnn.training.transfer import Transfer

_NOTHING: Final[Mapping[Depth, Tensor]] = MappingProxyType({})


@dataclass(frozen=True)
class Task:
    """Which rows a worker group trains and validates on, and how they are read: the same on every rank.

    Args:
        plan: the order of training.
        table: the training rows.
        reader: their random views, as far as they are decoded.
        validation: the validation rows.
        scanner: their evaluation view.
        chunk: rows per pass through the prefix and per evaluation batch.
        task_cpus: Ray CPUs of one decoding task.
        steps_per_block: steps whose images one decoding task reads.
        device_views: the rest of the random views; None: nothing.
        problem: what is asked of the images.
    """

    plan: Plan
    table: pa.Table
    reader: ImageReader
    validation: pa.Table
    scanner: ImageReader
    chunk: int
    task_cpus: float
    steps_per_block: int
    device_views: DeviceViews | None = None
    problem: Problem = ONE_LABEL

    def keys(self, step: int, limit: int) -> list[str]:
        """The first images of a step, by key."""
        rows, _ = self.plan.share(step)
        found: list[str] = shown_names(self.table).take(pa.array(rows[:limit])).to_pylist()
        return found


class Feed:
    """One rank's stream of batches, and their way through the prefix.

    Args:
        task: what to read.
        prefix: shared by all that train on it.
        device: where to compute.
        ranks: whose share of each step this is.
        total: steps of the longest fit, the end of the stream; may grow.
        clock: of the time that transfers take.
    """

    def __init__(
        self, task: Task, prefix: Prefix, device: torch.device, ranks: Ranks, total: int, clock: Clock | None = None
    ) -> None:
        self.task, self.prefix, self.device, self.total = task, prefix, device, total
        self._clock = clock or Clock()
        self._transfer = Transfer(device)
        self._rank, self._world = ranks.rank, ranks.world
        self._batches: Iterator[Batch] = iter(())
        self._next: int | None = None
        self._stop = total

    def batch(self, step: int) -> Batch:
        """This rank's batch of a step; steps that follow one another are one stream.

        Raises:
            StorageError: the object store failed.
        """
        if step != self._next:  # the first, another one, or the first beyond what was the end
            task = self.task
            order = TrainOrder(task.plan, self._rank, self._world, step, self.total, task.steps_per_block)
            self._stop = self.total
            self._batches = self._transfer.ahead(stream(task.reader, task.table, order, task_cpus=task.task_cpus))
        self._next = None  # a stream that failed is opened anew
        batch = next(self._batches)
        self._next = step + 1 if step + 1 < self._stop else None
        return replace(batch, step=step)

    def inputs(self, batch: Batch, depths: Collection[Depth]) -> dict[Depth, Tensor]:
        """The input of the suffix at each of the depths, one row per place of the batch."""
        with self._clock("transfer"):
            images = self._transfer.take(batch.images_NHWC)
        if self.task.device_views is None or batch.step is None:
            return self.prefix.taps(images, depths)
        views = self._views(self.task.device_views, images, batch.step, batch.rows)
        return self.prefix.onward(views, self.prefix.stages.num_stages, depths)

    def validation(self) -> Iterator[Batch]:
        """This rank's validation batches, of chunk rows each; over all ranks every row once."""
        task = self.task
        per_block = batches_per_block(task.chunk)
        order = ScanOrder(len(task.validation), task.chunk, per_block, self._rank, self._world)
        return self._transfer.ahead(stream(task.scanner, task.validation, order, task_cpus=task.task_cpus))

    def close(self) -> None:
        """Let go of what it holds beside its stream."""
        for reader in (self.task.reader, self.task.scanner):
            if reader.keeper:
                reader.keeper.close()

    def targets(self, batch: Batch, inputs: Mapping[Depth, Tensor] = _NOTHING) -> tuple[Targets, Tensor]:
        """(targets, see the problem's; valid bool[N]) of a training batch with these inputs, on the device."""
        found = self.task.problem.targets(self.task.table, np.maximum(batch.rows, 0))
        picked = torch.from_numpy(found).to(self.device)
        valid = torch.from_numpy(batch.rows != PADDING).to(self.device)
        late = self.task.device_views
        own: Tensor | Mixed = picked
        if late is not None and late.augment.mixes and batch.step is not None:
            mix = self._mix(late, batch.step, batch.rows)
            partners = to_device(mix.partners_N, self.device)
            own = Mixed(picked, picked[partners], to_device(mix.shares_N.astype(np.float32), self.device))
        return (Taught(own, inputs[TEACHER]) if TEACHER in inputs else own), valid

    def _views(self, late: DeviceViews, images_NHWC: Tensor, step: int, rows: npt.NDArray[np.int64]) -> Tensor:
        """A training batch's images normalised, with the device's part of their views, float32[N, 3, S, S]."""
        hashes: npt.NDArray[np.int64] = self.task.table["key_hash"].to_numpy()
        _, views = self.task.plan.share(step, self._rank, self._world)
        draws = late.draws(views, hashes[np.maximum(rows, 0)].astype(np.uint64))
        images = self.prefix.normalize(late.flip(images_NHWC, draws))
        images = late.erase(images, draws, rows != PADDING)
        if late.augment.mixes:
            images = late.mixed(images, self._mix(late, step, rows))
        return images.contiguous(memory_format=torch.channels_last)

    def _mix(self, late: DeviceViews, step: int, rows: npt.NDArray[np.int64]) -> Mix:
        return late.mix(step, self._rank * len(rows), rows != PADDING)


def next_batch(feed: Feed, step: int) -> tuple[Batch, RaycnnError | None]:
    """The batch of a step, or an empty one and the error that kept it away, which the ranks then agree on."""
    try:
        return feed.batch(step), None
    except RaycnnError as error:
        return Batch(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64), ()), error
