"""What a fit saves whose prefix is frozen and whose views return: its first epoch's outputs serve the others."""

from __future__ import annotations

import hashlib
import statistics
import sys
from pathlib import Path
from typing import Any

from raycnn.storage import open_store
from tests.bench.command import Row, config_of, timed
from tests.bench.pictures import write_tree

ROUNDS = 3
EPOCHS = 10
SIDES = ("auto", "none")
"""Of train.reuse."""


def frozen_prefix(root: Path, images: int = 1500) -> list[Row]:
    """`raycnn train` of a head, with and without what train.reuse keeps; all seconds but those of the start."""
    write_tree(root / "photos", images)
    loops: dict[str, list[float]] = {side: [] for side in SIDES}
    commands: dict[str, list[float]] = {side: [] for side in SIDES}
    weights = set()
    for number in range(ROUNDS):
        for side in reversed(SIDES) if number % 2 else SIDES:
            config = _config(root, f"{side}-{number}", side)
            result, whole = timed("train", config, root)
            loops[side].append(sum(result["seconds"].values()) - result["seconds"]["start"])
            commands[side].append(whole)
            weights.add(_weights(config, result["checkpoint"]))
            print(f"reuse {side}: {loops[side][-1]:.1f} s, {whole:.1f} s in all", file=sys.stderr, flush=True)
    assert len(weights) == 1, "what is kept has changed the weights"
    auto, none = (statistics.median(loops[side]) for side in SIDES)
    ours, theirs = (f"(the command {statistics.median(commands[side]):.0f} s)" for side in SIDES)
    name = f"{EPOCHS} epochs of a head, equal weights, the loop's s"
    return [(name, f"{auto:.1f} {ours}", f"train.reuse: none {theirs} {none:.1f}", f"{none / auto:.1f}", ">= 8")]


def _config(root: Path, name: str, reuse: str) -> dict[str, Any]:
    config = config_of(root / "photos", root / name, image_size=128, **{"train.epochs": EPOCHS, "train.workers": 1})
    config["data"]["test_fraction"] = 0
    config["model"] = {"name": "timm/tf_efficientnet_lite0", "weights": "none", "unfreeze": 0}
    config["augment"] = {"crop_scale": None, "hflip": 0}
    config["train"]["reuse"] = reuse
    return config | {"cache": {"folder": str(root / f"{name}-cache")}}


def _weights(config: dict[str, Any], checkpoint: str) -> str:
    """Digest of the last checkpoint's weights."""
    store = open_store(config["run"]["storage"]).child(config["run"]["name"])
    return hashlib.sha256(store.get(f"checkpoints/{checkpoint}/weights.safetensors")).hexdigest()
