"""Sources whose classes change under a run, and sources too small to train on; none of it starts a worker."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raycnn
from raycnn.config import Config
from raycnn.data.index import build_index
from raycnn.data.sources import class_names
from raycnn.errors import CheckpointError, DataError
from raycnn.storage import open_store
from raycnn.training.run import create_run
from tests.faults.kit.scenarios import Seen
from tests.support.digits import write_digits

CHANGED = pytest.mark.scenario("labels renamed, added, reordered")
TINY = pytest.mark.scenario("empty, one-class, tiny data")


def settings(source: Path, folder: Path) -> Config:
    model = {"name": "reference/lenet", "weights": "none"}
    return raycnn.load_config(
        {"run": {"name": "run", "storage": str(folder / "runs")}, "data": {"source": str(source)}, "model": model}, {}
    )


@pytest.fixture
def begun(tmp_path: Path) -> Config:
    """A run that is pinned to ten classes of digits: so few images that no Ray is needed."""
    (tmp_path / "digits").mkdir()
    config = settings(write_digits(tmp_path / "digits", each=6), tmp_path)
    pin(config)
    return config


def pin(config: Config) -> None:
    storage = open_store(config.run.storage)
    index = build_index(config, storage, lambda done, total: None)
    create_run(config, storage.child("run"), index.hash, index.classes)


def refusal(config: Config) -> str:
    with pytest.raises(CheckpointError) as told:
        raycnn.train(config)
    assert told.value.code == 7
    return told.value.what


@CHANGED
def test_a_class_folder_is_renamed(begun: Config, seen: Seen) -> None:
    source = Path(begun.data.source)
    (source / "digit-3").rename(source / "three")
    assert refusal(begun).endswith("other classes than the run: gone: digit-3; new: three")
    seen.what = "code 7: gone: digit-3; new: three"


@CHANGED
def test_a_class_is_added(begun: Config) -> None:
    folder = Path(begun.data.source, "digit-A")
    folder.mkdir()
    assert class_names(begun.data.source) == {f"digit-{n}" for n in range(10)}  # an empty folder is no class
    os.link(Path(begun.data.source, "digit-0/000.png"), folder / "000.png")
    assert refusal(begun).endswith("new: digit-A")


@CHANGED
def test_a_label_of_a_manifest_is_renamed_and_its_rows_reordered(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    digits = write_digits(tmp_path / "digits", each=6)
    rows = [{"key": f"digits/{path.relative_to(digits)}", "label": path.parent.name} for path in digits.rglob("*.png")]
    manifest = tmp_path / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    config = settings(manifest, tmp_path)
    pin(config)
    pq.write_table(pa.Table.from_pylist(rows[::-1]), manifest)
    assert class_names(str(manifest)) == {row["label"] for row in rows}
    pq.write_table(pa.Table.from_pylist([{**row, "label": row["label"].upper()} for row in rows]), manifest)
    assert "gone: digit-0, digit-1" in refusal(config)


@CHANGED
def test_class_folders_below_folders_of_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write_digits(tmp_path / split, each=1)
    assert class_names(str(tmp_path)) == {f"digit-{number}" for number in range(10)}


@TINY
@pytest.mark.parametrize(
    ("classes", "each", "told"),
    [
        (0, 0, "no objects"),
        (1, 9, "one class only: digit-0"),
        (2, 1, "classes without training images|no validation images"),
    ],
    ids=["empty", "one class", "one image per class"],
)
def test_too_little_to_train_on(classes: int, each: int, told: str, tmp_path: Path, seen: Seen) -> None:
    digits = tmp_path / "all"
    digits.mkdir()
    write_digits(digits, each=max(each, 1))
    source = tmp_path / "source"
    source.mkdir()
    for number in range(classes):
        (digits / f"digit-{number}").rename(source / f"digit-{number}")
    config = settings(source, tmp_path)
    with pytest.raises(DataError, match=told) as refused:
        build_index(config, open_store(config.run.storage), lambda done, total: None)
    assert refused.value.code == 3
    seen.what = f"code 3: {refused.value.what}"
