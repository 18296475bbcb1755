"""Recipes of jobs/recipes with their inputs in a folder of choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raycnn.config import Config, load_config
from raycnn.demo.inputs import INPUTS, write


def config_of_recipe(path: Path, folder: Path, changes: dict[str, Any] | None = None) -> Config:
    """The recipe's config with `folder` in place of demo-output; what it trains on is written if it is not there."""
    text = path.read_text()
    for needed in INPUTS:
        if f"demo-output/{needed}" in text and not (folder / needed).exists():
            write(needed, folder)
    return load_config(yaml.safe_load(text.replace("demo-output", str(folder))), changes)
