"""The search before this one, of a name with a date in it: what to try first, and what to beat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raycnn.config import Config
from raycnn.data.manifest import Index
from raycnn.searching import records
from raycnn.searching.answer import goal, paired, ranking
from raycnn.storage import Store, open_store
from raycnn.training.run import RESULT, find_commit

_TRIED_FIRST = 3


@dataclass(frozen=True)
class Former:
    """A search that has ended.

    Args:
        name: its run.name.
        store: its folder.
    """

    name: str
    store: Store

    def best_values(self, config: Config) -> list[dict[str, Any]]:
        """The settings of its best trials, best first."""
        metric, mode = goal(config)
        known = [record for record in records.read_all(self.store) if record.stage == "search"]
        return [record.values for record in ranking(known, metric, mode)[:_TRIED_FIRST]]

    def compare(
        self, config: Config, index: Index, right_new_N: Any, scorers: Sequence[Any] = ()
    ) -> dict[str, Any] | None:
        """Its winner against a new one on the same rows of the test split; None if its classes are others.

        Args:
            config: of the new search, with evaluate.split.
            index: of the new search.
            right_new_N: whether the new winner has each readable row right.
            scorers: see inference.infer.
        """
        from raycnn.results.evaluate import score  # torch

        facts, commit = find_commit(self.store, "best")
        if facts.classes != index.classes:
            return None
        scores = score(config, self.store, commit, index, scorers)
        right_old_N = scores.problem.right(scores.outputs_NK, scores.targets_N)
        if right_old_N is None or len(right_old_N) != len(right_new_N):
            return None
        groups = np.array([f"row {n}" if group is None else group for n, group in enumerate(scores.groups_N)])
        found = paired(right_new_N, right_old_N, groups)
        return None if found is None else {"run": self.name, **asdict(found)}


def find_former(pattern: str, name: str, storage: str) -> Former | None:
    """The newest ended search before `name` whose name fits the pattern; None without a date in it, or the first time.

    Names are compared as text, so a pattern should have its largest unit first: %Y-%m-%d.
    """
    if "%" not in pattern:
        return None
    fits = re.compile(re.sub(r"%[A-Za-z]", "[0-9A-Za-z]+", re.escape(pattern).replace(r"\%", "%")))
    root = open_store(storage)
    for other in sorted(root.folders(), reverse=True):
        store = root.child(other)
        if other < name and fits.fullmatch(other) and any(store.list(RESULT)):
            return Former(other, store)
    return None
