"""raycnn shift: new images against the training rows, through Ray, as the starting weights see them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

import raycnn
from raycnn.errors import ConfigError, DataError
from raycnn.results.shift_report import render
from raycnn.storage import open_store

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(digits: Path, storage: Path) -> raycnn.Config:
    tree = {
        "run": {"name": "run", "storage": str(storage)},
        "data": {"source": str(digits), "image_size": 32, "stratify": True, "val_fraction": 0.2},
        "model": {"name": "timm/test_efficientnet", "weights": "none"},
        "train": {"chunk": 16},
    }
    return raycnn.load_config(tree)


@pytest.mark.slow
def test_darker_images_are_found_and_listed(digits: Path, tmp_path: Path) -> None:
    target = tmp_path / "dark"
    target.mkdir()
    for number, path in enumerate(sorted(digits.rglob("*.png"))[::4]):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            ImageEnhance.Brightness(image).enhance(0.5).save(target / f"{number:03}.png")
    config = raycnn.load_config(settings(digits, tmp_path / "runs"), {"shift.target": str(target), "shift.listed": 4})
    told = raycnn.shift(config)
    assert told["rows"] == 100
    assert told["distances"]["target"]["auroc"] > 0.95 > told["distances"]["halves"]["auroc"]
    assert told["distances"]["val"] is not None
    assert told["distances"]["recalibrated"]["auroc"] < told["distances"]["target"]["auroc"]
    assert len(told["drifted"]) == 4
    folder, _, name = told["output"].rpartition("/")
    assert json.loads(open_store(folder).get(name))["distances"] == told["distances"]
    assert told["advice"] in render(told)


def test_without_a_target_or_with_a_few_images_it_is_one_line(digits: Path, tmp_path: Path) -> None:
    config = settings(digits, tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"shift\.target"):
        raycnn.shift(config)
    few = tmp_path / "few"
    few.mkdir()
    (few / "1.png").write_bytes((digits / "digit-1/001.png").read_bytes())
    with pytest.raises(DataError, match="too few to compare"):
        raycnn.shift(raycnn.load_config(config, {"shift.target": str(few)}))
