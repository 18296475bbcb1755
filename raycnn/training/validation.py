"""Exact evaluation inside training: every row once, the same bits for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch.distributed as dist

from raycnn.data.dataset import Batch, ScanOrder, batches_per_block, stream
from raycnn.data.reader import PADDING, ImageReader
from raycnn.errors import RaycnnError
from raycnn.training.device import to_device
from raycnn.training.learner import Learner
from raycnn.training.metrics import classification_metrics
from raycnn.training.ranks import Ranks

Scores = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Validation:
    """The validation rows, and how they are read (the evaluation view)."""

    table: pa.Table
    reader: ImageReader
    task_cpus: float

    def metrics(self, learner: Learner, ranks: Ranks) -> dict[str, Any]:  # all ranks
        """classification_metrics over all readable validation rows, on every rank."""
        chunk = learner.config.train.chunk
        order = ScanOrder(len(self.table), chunk, batches_per_block(chunk), ranks.rank, ranks.world)
        if ranks.distributed and learner.config.model.batchnorm == "local":
            for buffer in learner.module.buffers():  # all ranks: the statistics that a checkpoint keeps are rank 0's
                dist.broadcast(buffer, src=0)
        mine: Scores | RaycnnError
        try:
            batches = stream(self.reader, self.table, order, task_cpus=self.task_cpus)
            mine = score(learner, batches)
        except RaycnnError as error:
            mine = error
        found = ranks.gather(mine)
        for scores in found:
            if isinstance(scores, RaycnnError):
                raise scores
        return in_row_order([scores for scores in found if not isinstance(scores, RaycnnError)], self.table)


def score(learner: Learner, batches: Iterable[Batch]) -> Scores:
    """(rows int64[N], logits float32[N, K]) of the readable rows of `batches`."""
    rows, logits = [np.zeros(0, np.int64)], []
    with learner.evaluating() as network:
        for batch in batches:
            valid = batch.rows != PADDING
            rows.append(batch.rows[valid])
            logits.append(network(to_device(batch.images_NHWC, learner.device)).cpu().numpy()[valid])
    empty = np.zeros((0, 0), np.float32)
    return np.concatenate(rows), np.concatenate(logits) if logits else empty


def in_row_order(found: list[Scores], table: pa.Table) -> dict[str, Any]:
    """Metrics over the scores of all ranks; sums run in row order, so their bits do not depend on who scored what."""
    rows = np.concatenate([rows for rows, _ in found])
    logits = np.concatenate([logits for _, logits in found if len(logits)] or [np.zeros((0, 1), np.float32)])
    by_row = np.argsort(rows)
    labels = table["label"].to_numpy()[rows[by_row]]
    return dict(classification_metrics(logits[by_row], labels.astype(np.int64)))
