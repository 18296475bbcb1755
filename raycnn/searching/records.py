"""What is known of each trial: our own records, from which an interrupted search goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raycnn.errors import CheckpointError
from raycnn.storage import Store

FOLDER = "search/trials"
FORMAT = 1
Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Evaluation:
    """Metrics on the validation rows after `step` steps.

    epochs: passes over the training rows until then; seconds: what the trial alone had cost until then.
    """

    step: int
    epochs: float
    seconds: float
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        id: name of its folder below search/trials, in the order of their start within a stage.
        values: what the search chose, by dotted path.
        depth: the unfreezing depth as text.
        status: running until it ended; stopped by the scheduler or the budget.
        evaluations: oldest first.
        reason: why it failed or was stopped.
        stage: whether it looks for the best, or trains one of the best again under another seed.
    """

    id: str
    values: dict[str, Any]
    depth: str
    status: Status = "running"
    evaluations: tuple[Evaluation, ...] = ()
    reason: str | None = None
    stage: Literal["search", "confirm"] = "search"

    @property
    def seconds(self) -> float:
        """What the trial alone has cost: its suffix, its evaluations, its checkpoints."""
        return self.evaluations[-1].seconds if self.evaluations else 0.0

    def values_of(self, metric: str) -> list[float | None]:
        """The metric at each evaluation, oldest first."""
        return [evaluation.metrics[metric] for evaluation in self.evaluations]


def write(store: Store, record: TrialRecord) -> None:
    """Keep a record in the run's folder."""
    store.put(f"{FOLDER}/{record.id}/trial.json", json.dumps({"format": FORMAT, **asdict(record)}, indent=1).encode())


def read_all(store: Store) -> list[TrialRecord]:
    """Every record of the run's folder, in the order of their names.

    Raises:
        CheckpointError: a record cannot be read.
    """
    return [_read(store, name) for name in store.folders(FOLDER)]


def _read(store: Store, name: str) -> TrialRecord:
    key = f"{FOLDER}/{name}/trial.json"
    try:
        tree = json.loads(store.get(key))
        if (newer := tree.pop("format", 1)) > FORMAT:
            what = f"a trial's record of format {newer}, and this raycnn reads formats up to {FORMAT}"
            raise CheckpointError(what, where=f"{store.uri}/{key}", fix="use a newer raycnn")
        evaluations = tuple(Evaluation(**each) for each in tree.pop("evaluations"))
        return TrialRecord(**tree, evaluations=evaluations)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        where = f"{store.uri}/{key}"
        raise CheckpointError(f"not a trial's record: {error}", where=where, fix="restore it, or delete it") from None
