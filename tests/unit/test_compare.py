"""A shift that was made on purpose is found in real images, and what is advised follows from what it is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits

from raycnn.models.batchnorm import batch_statistics, set_statistics
from raycnn.models.pooling import pooled
from raycnn.models.stages import find
from raycnn.models.zoo import build
from raycnn.results.compare import Side, _halves, advice, compare, estimated_shares, excess

SIZE = 120
IMAGES, LABELS = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(LABELS))


@lru_cache
def picture(row: int) -> Image.Image:
    return Image.fromarray((IMAGES[row].reshape(8, 8) * 15).astype(np.uint8)).resize((32, 32)).convert("RGB")


def side(rows: np.ndarray, change: Any = None) -> Side:
    """Digits as an untrained network sees them, and with statistics of their own."""
    images = [picture(row) if change is None else change(picture(row)) for row in rows.tolist()]
    inputs = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1
    found = []
    for own in (False, True):
        network = build("timm/test_efficientnet", 10, seed=0, image_size=32)
        if own:
            set_statistics(network.module, batch_statistics(network.module, inputs), 1)
        prefix = find(network).split(0).prefix
        with torch.no_grad():
            found.append(pooled(prefix.eval()(inputs)).numpy())
    names = [f"{row:04}.png" for row in rows.tolist()]
    columns = {"key": names, "label": LABELS[rows], "group": pa.nulls(len(rows), pa.string())}
    empty = {"offset": np.zeros(len(rows), np.int64), "alias": pa.nulls(len(rows), pa.string())}
    return Side(pa.table(columns | empty), *found)


@pytest.fixture(scope="module")
def ours() -> Side:
    return side(ORDER[: 2 * SIZE])


def found(ours: Side, target: Side) -> dict[str, Any]:
    return compare(ours, target, None, "class", [str(k) for k in range(10)], listed=3)


NEW = ORDER[2 * SIZE : 3 * SIZE]


def darker(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.6)


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(2))


def test_images_of_the_same_kind_ask_for_nothing(ours: Side) -> None:
    told = found(ours, side(NEW))
    assert told["rows"] == SIZE
    assert advice(told, "new").startswith("nothing to do")
    assert ratio(told, "target", "halves") < 2


def ratio(told: dict[str, Any], name: str, yardstick: str) -> float:
    return told["distances"][name]["frechet"] / told["distances"][yardstick]["frechet"]


@pytest.mark.parametrize("change", [darker, blurred])
def test_a_shift_made_on_purpose_is_found_and_recalibration_reduces_it(ours: Side, change: Any) -> None:
    told = found(ours, side(NEW, change))
    assert told["distances"]["target"]["auroc"] > 0.95
    before, after = ratio(told, "target", "halves"), ratio(told, "recalibrated", "recalibrated_halves")
    assert before > 2
    assert after < 1 + (before - 1) / 2


def test_darker_images_are_to_be_recalibrated(ours: Side) -> None:
    told = found(ours, side(NEW, darker))
    assert excess(told, "recalibrated") < 0.5 * excess(told, "target")
    assert advice(told, "s3://new").endswith("model.recalibrate: s3://new")


def test_statistics_of_the_target_alone_set_the_two_further_apart(ours: Side) -> None:
    target = side(NEW)
    assert found(ours, target)["distances"]["target"]["auroc"] < 0.65
    assert found(ours, Side(target.table, target.calibrated))["distances"]["target"]["auroc"] > 0.95


def test_the_images_that_are_not_like_the_others_are_named_first(ours: Side) -> None:
    target, odd = side(NEW), side(NEW[:40], darker)
    mixed = Side(target.table, np.concatenate([odd.plain, target.plain[40:]]), None)
    told = found(ours, mixed)
    assert {each["key"] for each in told["drifted"]} <= {f"{row:04}.png" for row in NEW[:40].tolist()}
    assert told["distances"]["recalibrated"] is None


def test_classes_in_other_shares_are_told_from_images_of_another_kind(ours: Side) -> None:
    rest = ORDER[2 * SIZE :]
    few = rest[LABELS[rest] < 5][:SIZE]
    told = found(ours, side(few))
    estimated = {name: new for name, (_, new) in told["shares"].items()}
    assert sum(estimated[str(k)] for k in range(5)) > 0.85
    assert "evaluate.prior: estimated" in advice(told, "new")


def test_shares_of_the_same_kind_of_images_are_those_of_the_training_rows(ours: Side) -> None:
    shares_K = estimated_shares(ours, side(NEW), 10)
    true_K = np.bincount(LABELS[NEW], minlength=10) / SIZE
    assert shares_K.sum() == pytest.approx(1)
    assert np.abs(shares_K - true_K).sum() / 2 < 0.1


def test_halves_have_nothing_in_common_and_groups_stay_together(ours: Side) -> None:
    groups = pa.array([f"g{number // 8}" for number in range(2 * SIZE)])
    grouped = ours.table.set_column(ours.table.column_names.index("group"), "group", groups)
    first, second = _halves(Side(grouped, ours.plain), SIZE)
    assert len(first.table) == len(second.table) == SIZE
    assert not set(first.table["key"].to_pylist()) & set(second.table["key"].to_pylist())
    assert not set(first.table["group"].to_pylist()) & set(second.table["group"].to_pylist())


@pytest.mark.parametrize(
    ("target", "same_shares", "recalibrated", "shares", "begins"),
    [
        (0.55, None, 0.6, 0.1, "nothing to do"),
        (0.55, None, 0.6, 0.4, "the shares of the classes differ"),
        (0.90, 0.55, 0.9, 0.4, "only the shares of the classes differ"),
        (0.90, 0.90, 0.6, 0.4, "the images differ, and recalibration helps"),
        (0.90, None, 0.9, 0.1, "the images differ, and recalibration does not help"),
        (0.90, None, None, 0.1, "the images differ, and recalibration does not help"),
    ],
)
def test_advice(target: float, same_shares: Any, recalibrated: Any, shares: Any, begins: str) -> None:
    values = {"target": target, "halves": 0.52, "val": None, "recalibrated": recalibrated, "same_shares": same_shares}
    distances = {name: value and {"auroc": value} for name, value in values.items()}
    told = {"rows": 1000, "distances": distances, "moved": shares and {"target": shares, "halves": 0.05}}
    assert advice(told, "new").startswith(begins)
