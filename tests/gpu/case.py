"""What is trained and searched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raycnn.config import Config, load_config
from raycnn.demo.__main__ import RECIPES, upload
from raycnn.demo.server import ObjectServer
from tests.support.digits import write_digits


@dataclass(frozen=True)
class Case:
    """The main job and a small search."""

    job: Config
    search: Config


@contextmanager
def on_gpus(folder: Path, workers: int) -> Iterator[Case]:
    """The demo's solar cells from a real object store; each GPU has the batch that the recipe gives to all."""
    with ObjectServer(folder / "objects") as server:
        os.environ.update(server.environment)
        recipe = upload(folder, server)
        batch = {"train.workers": workers, "train.global_batch": recipe.train.global_batch * workers}
        yield Case(
            load_config(recipe, batch),
            load_config(RECIPES / "solar-search.yaml", {"cache.folder": str(folder / "cache")}),
        )


@contextmanager
def on_cpus(folder: Path) -> Iterator[Case]:
    """A few digits and a network to match, its prefix compiled as it would be for a GPU."""
    tree = {
        "run": {"name": "job", "storage": str(folder / "runs")},
        "data": {"source": str(write_digits(folder / "digits", 16)), "val_fraction": 0.2, "test_fraction": 0.2},
        "model": {"name": "reference/lenet", "weights": "none", "unfreeze": 1},
        "train": {"epochs": 2, "global_batch": 16, "chunk": 16, "compile": "prefix"},
        "cache": {"folder": str(folder / "cache")},
    }
    search = {"space": {"optim.lr": {"grid": [1e-3, 1e-2]}, "model.unfreeze": {"grid": [0, 1]}}, "confirm": [0, 0]}
    job = load_config(tree)
    yield Case(job, load_config(tree | {"search": search}, {"run.name": "search"}))
