"""What a search is, pinned when it first starts: its settings may not change under its trials."""

from __future__ import annotations

import json
from typing import Final

from raycnn.config import Config
from raycnn.errors import CheckpointError, PreconditionFailed
from raycnn.storage import Store

_PLAN: Final = "search/search.json"
_PINNED: Final = ("space", "searcher", "scheduler", "seed", "metric", "mode", "reduction", "grace", "compare")


def pin(store: Store, config: Config) -> None:
    """Keep what the search is; CheckpointError with the differing settings if it was started with others."""
    tree = config.search.model_dump(mode="json", include=set(_PINNED), exclude_none=True)
    try:
        store.put(_PLAN, json.dumps(tree, indent=1, sort_keys=True).encode(), create_only=True)
    except PreconditionFailed:
        before = json.loads(store.get(_PLAN))
        keys = sorted(key for key in tree.keys() | before.keys() if tree.get(key) != before.get(key))
        if keys:
            told = "; ".join(
                f"search.{key}: {json.dumps(before.get(key))} -> {json.dumps(tree.get(key))}" for key in keys
            )
            raise CheckpointError(
                f"the search was started with other settings: {told}",
                where=store.uri,
                fix="restore them, or choose a new run.name",
            ) from None
