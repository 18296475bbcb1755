"""The chosen configuration trained on training and validation rows together, for the steps that the search found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from raycnn.cluster import resources
from raycnn.config import Config, load_config
from raycnn.data.manifest import Index, content_hash, sort_rows, write_index
from raycnn.searching.crew import full_width
from raycnn.searching.winner import Winner
from raycnn.storage import Store
from raycnn.training import checkpoint
from raycnn.training.fit import fit
from raycnn.training.groups import Show
from raycnn.training.run import from_elsewhere, hold, read_run

FOLDER = "search"
NAME = "refit"


def refit(config: Config, store: Store, index: Index, winner: Winner, show: Show) -> Winner:
    """Train at full width, from the winner's starting weights; goes on if it was interrupted. Needs an initialised Ray.

    Returns:
        The winner with the new commit; its metrics are still those of the validation rows.

    Raises:
        RaycnnError: as the run ends.
    """
    both = joined(index)
    write_index(both, store.child(FOLDER))
    rows, chosen = len(both.rows("train")), load_config(config, winner.record.values)
    settings: dict[str, Any] = {
        **from_elsewhere(chosen),
        "run.storage": f"{store.uri}/{FOLDER}",
        "run.name": NAME,
        "train.epochs": winner.commit.step * chosen.train.global_batch / (rows * chosen.augment.views),
        "train.workers": full_width(chosen, resources()),
        "train.folds": None,  # its rows are chosen
        "train.fold": None,
    }
    folder = store.child(f"{FOLDER}/{NAME}")
    with hold(folder) as lease:
        fit(load_config(chosen, settings), folder, both, lease, show, read_run(store))
    commit = checkpoint.latest(folder, None)
    assert commit is not None
    return replace(winner, folder=folder, commit=commit)


def joined(index: Index) -> Index:
    """The index with its validation rows among the training rows."""
    split = index.manifest["split"]
    merged = pc.if_else(pc.equal(split, "val"), "train", split)
    manifest = index.manifest.set_column(index.manifest.schema.get_field_index("split"), "split", merged)
    table = sort_rows(manifest.cast(index.manifest.schema))
    return replace(index, hash=content_hash(table, index.kind, index.classes), manifest=table)
