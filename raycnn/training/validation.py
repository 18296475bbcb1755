"""Exact evaluation inside training: every row once, the same bits for any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch.distributed as dist

from raycnn.data.reader import PADDING
from raycnn.errors import RaycnnError
from raycnn.training.calibration import Calibration, Goal
from raycnn.training.feed import Feed
from raycnn.training.learner import Learner
from raycnn.training.problems import Problem
from raycnn.training.ranks import Ranks

Scores = tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]
"""Row ids int64[N], and for each learner its logits float32[N, K]."""


class Validated(NamedTuple):
    """Metrics, and what the rows choose for those that come after; see raycnn.training.calibration."""

    metrics: dict[str, Any]
    calibration: Calibration | None


def validate(learners: Sequence[Learner], feed: Feed, ranks: Ranks) -> list[Validated]:  # all ranks
    """Of each learner, over all readable validation rows, on every rank; one pass feeds all."""
    for learner in learners:
        if ranks.world > 1 and learner.config.model.batchnorm == "local":
            for buffer in learner.buffers():  # all ranks: the statistics that a checkpoint keeps are rank 0's
                dist.broadcast(buffer, src=0)
    mine: Scores | RaycnnError
    try:
        mine = _score(learners, feed)
    except RaycnnError as error:
        mine = error
    found: list[Scores] = []
    for scores in ranks.gather(mine):
        if isinstance(scores, RaycnnError):
            raise scores
        found.append(scores)
    return [
        _in_row_order(found, number, feed.task.validation, feed.task.problem, learner.config.evaluate.thresholds)
        for number, learner in enumerate(learners)
    ]


def _score(learners: Sequence[Learner], feed: Feed) -> Scores:
    depths = {learner.base for learner in learners}
    rows = [np.zeros(0, np.int64)]
    logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in learners]
    with ExitStack() as stack:
        networks = [stack.enter_context(learner.evaluating()) for learner in learners]
        for batch in feed.validation():
            valid = batch.rows != PADDING
            rows.append(batch.rows[valid])
            inputs = feed.inputs(batch, depths)
            for learner, network, own in zip(learners, networks, logits, strict=True):
                own.append(network(inputs[learner.base]).cpu().numpy()[valid])
    empty = np.zeros((0, 0), np.float32)
    return np.concatenate(rows), [np.concatenate(own) if own else empty for own in logits]


def _in_row_order(
    found: Sequence[Scores], number: int, table: pa.Table, problem: Problem, goal: Goal = "none"
) -> Validated:
    """Of the scores of all ranks; sums run in row order, so their bits do not depend on who scored what."""
    rows = np.concatenate([rows for rows, _ in found])
    parts = [logits[number] for _, logits in found if len(logits[number])]
    logits = np.concatenate(parts or [np.zeros((0, 1), np.float32)])
    by_row = np.argsort(rows)
    logits, targets = logits[by_row], problem.targets(table, rows[by_row])
    return Validated(problem.measure(logits, targets), problem.calibrate(logits, targets, goal))
