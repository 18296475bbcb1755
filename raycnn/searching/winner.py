"""The winner of a search: chosen on validation rows, committed as the run's own checkpoint, tested once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raycnn.cluster import resources
from raycnn.config import Config, load_config
from raycnn.data.manifest import Index
from raycnn.errors import CheckpointError
from raycnn.results.evaluate import score, with_intervals
from raycnn.searching.answer import best_evaluation, choose, confirmed, goal, ranking
from raycnn.searching.crew import full_width
from raycnn.searching.former import Former
from raycnn.searching.records import FOLDER, TrialRecord
from raycnn.searching.summary import confirm_rows, yaml_of
from raycnn.storage import Store
from raycnn.storage.lease import Lease, read_lease
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Commit
from raycnn.training.run import count_look


@dataclass(frozen=True)
class Winner:
    """The chosen configuration: its trial of the search stage, that trial's best evaluation, and its commit."""

    record: TrialRecord
    metrics: dict[str, float | None]
    folder: Store
    commit: Commit

    def told(self, config: Config, checkpoint: str) -> dict[str, Any]:
        """{id, config, metrics, checkpoint, yaml}, committed as `checkpoint`."""
        return {
            "id": self.record.id,
            "config": self.record.values,
            "metrics": self.metrics,
            "checkpoint": checkpoint,
            "yaml": yaml_of(config, self.record.values),
        }


def pick(config: Config, store: Store, records: list[TrialRecord]) -> tuple[Winner | None, list[dict[str, Any]] | None]:
    """The winner, None if no trial has a value, and what confirming said of the best few, None without it."""
    metric, mode = goal(config)
    ranked = ranking((each for each in records if each.stage == "search"), metric, mode)
    if not ranked:
        return None, None
    configurations = confirmed((each for each in records if each.stage == "confirm"), metric, mode)
    chosen = choose(configurations, mode)
    record = next((each for each in ranked if chosen and each.values == chosen.values), ranked[0])
    best = best_evaluation(record, metric, mode)
    assert best is not None
    folder = store.child(f"{FOLDER}/{record.id}")
    found = checkpoint.commits(folder, read_lease(folder))
    commit = next((each for each in found if each.step == best.step), None)
    if commit is None:
        raise CheckpointError(
            "the best trial's checkpoint is gone", where=folder.uri, fix="search under a new run.name"
        )
    return Winner(record, best.metrics, folder, commit), confirm_rows(configurations, chosen) or None


def keep(store: Store, lease: Lease, winner: Winner) -> Commit:
    """Commit the winner as the run's own checkpoint, which evaluate, predict and load then take."""
    facts = {key: value for key, value in winner.commit.manifest.items() if key not in ("format", "files", "epoch")}
    files = checkpoint.verified(winner.folder, winner.commit)
    return checkpoint.write(store, winner.commit.step, lease.epoch, files, facts, guard=lease.check)


def look_at_test(
    config: Config, store: Store, commit: Commit, index: Index, former: Former | None, packs: Sequence[Any]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """{metrics: with intervals} of the winner on the test split, and how it does there against the former winner.

    The packs score it, if they are still there. run.json counts the look. (None, None) without test rows.
    """
    if not len(index.rows("test")):
        return None, None
    count_look(store)
    config = load_config(config, {"evaluate.split": "test", "train.workers": full_width(config, resources())})
    scores = score(config, store, commit, index, packs)
    right_N = scores.problem.right(scores.outputs_NK, scores.targets_N)
    against = former.compare(config, index, right_N, packs) if former and right_N is not None else None
    return {"metrics": with_intervals(scores)}, against
