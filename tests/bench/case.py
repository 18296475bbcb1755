"""The search that every side runs: ELPV's solar cells, EfficientNet-Lite0, learning rates x depths."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from raycnn.config import Config, load_config
from raycnn.data.keyed import derive_seed
from raycnn.data.manifest import Index, read_index
from raycnn.demo import data
from raycnn.demo.weights import lite0_weights
from raycnn.models.weights import load_pretrained
from raycnn.models.zoo import Network, build
from raycnn.storage import open_store
from raycnn.training.serialize import encode_weights
from tests.bench.command import timed

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
DEPTHS = (1, "blocks.6", 0)
"""From blocks.5 on, which is where the last stage starts, from blocks.6 on, and the head alone."""
DOWNLOADS = Path(tempfile.gettempdir()) / "raycnn-bench-downloads"


@dataclass(frozen=True)
class Case:
    """The config without a search, and the index that the sides other than raycnn's own read."""

    config: Config
    index: Index

    @classmethod
    def read(cls, path: Path) -> Case:
        config = load_config(path)
        storage = open_store(config.run.storage)
        (hash,) = storage.folders("index")
        return cls(config, read_index(storage, hash))

    def network(self) -> Network:
        """With the weights that a run starts from."""
        model, train = self.config.model, self.config.train
        seed = derive_seed(train.seed, "init")
        network = build(model.name, len(self.index.classes), seed=seed, image_size=self.config.data.image_size)
        load_pretrained(network, model.weights, sha256=None, read=lambda path: Path(path).read_bytes())
        return network


def prepare_case(root: Path, rows: int | None = None) -> Path:
    """Images (only the first `rows`, if told), weights and an index below `root`; the path of the config."""
    print(data.LICENCE, file=sys.stderr)
    cells = open_store(str(root / "cells"))
    for key, content in islice(data.cells(data.fetch(DOWNLOADS)), rows):
        cells.put(key, content)
    (root / "lite0.safetensors").write_bytes(encode_weights(lite0_weights()))
    tree = tree_of(root)
    timed("index", tree, root)
    path = root / "case.yaml"
    path.write_text(json.dumps(tree))
    return path


def tree_of(root: Path, storage: str = "known", **search: Any) -> dict[str, Any]:
    """The config as a mapping, with a search if its settings are given."""
    space = {"optim.lr": {"grid": LEARNING_RATES}, "model.unfreeze": {"grid": DEPTHS}}
    fresh = {"space": space, "confirm": [0, 0]}
    return {
        "run": {"name": "solar", "storage": str(root / storage)},
        "data": {
            "source": str(root / "cells"), "image_size": 128,
            "test_fraction": 0.25, "val_fraction": 0.1125, "stratify": True, "split_seed": 0,
        },
        "model": {"name": "timm/tf_efficientnet_lite0", "weights": str(root / "lite0.safetensors"), "unfreeze": 0},
        "augment": {"crop_scale": [0.7, 1.0], "crop_ratio": [0.9, 1.1], "hflip": 0.5, "vflip": 0.5},
        "optim": {"name": "adamw", "weight_decay": 0.01},
        "loss": {"label_smoothing": 0.05},
        "train": {"epochs": 2, "global_batch": 64, "chunk": 32, "threads": 1, "eval_every": 1},
        # of its own: nothing that another search has kept
        "cache": {"folder": str(root / f"{storage}-cache")},
    } | ({"search": fresh | search} if search else {})  # fmt: skip
