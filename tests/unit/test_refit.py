"""What a refit trains on, and how wide."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycnn.config import load_config
from raycnn.data.decode import Limits
from raycnn.data.manifest import QUARANTINE, SCHEMA, Index, content_hash
from raycnn.searching.crew import full_width
from raycnn.searching.refit import joined

CLASSES = ("a", "b")


def index(rows: list[tuple[str, int, str]]) -> Index:
    """Of (key, label, split), in the manifest's order."""
    order = sorted(rows, key=lambda row: (row[2], row[1], row[0]))
    manifest = pa.Table.from_pylist(
        [
            {
                "key": key, "offset": 0, "length": 9, "label": label, "labels": [label], "split": split, "size": 9,
                "sha256": hashlib.sha256(key.encode()).digest(), "key_hash": number, "width": 8, "height": 8,
            }
            for number, (key, label, split) in enumerate(order)
        ],
        SCHEMA,
    )  # fmt: skip
    hash = content_hash(manifest, "class", CLASSES)
    return Index(hash, "/y", "/x", "class", CLASSES, manifest, QUARANTINE.empty_table(), [], [], Limits(1, 1))


ROWS = [("k", 1, "train"), ("b", 0, "train"), ("z", 0, "val"), ("a", 1, "val"), ("t", 0, "test"), ("s", 1, "test")]


def test_validation_rows_are_training_rows_in_the_manifests_order() -> None:
    before = index(ROWS)
    both = joined(before)
    assert both.rows("train")["key"].to_pylist() == ["b", "z", "a", "k"]  # by label, then key
    assert len(both.rows("val")) == 0
    assert both.rows("test").equals(before.rows("test"))
    assert both.manifest.schema == SCHEMA
    assert both.manifest["key"].num_chunks == 1


def test_every_row_keeps_all_that_is_known_of_it() -> None:
    def known(of: Index) -> list[dict[str, object]]:
        rows = of.manifest.drop_columns("split").to_pylist()
        return sorted(rows, key=lambda row: str(row["key"]))

    before = index(ROWS)
    assert known(joined(before)) == known(before)


def test_it_is_pinned_as_if_it_had_been_split_so() -> None:
    before = index(ROWS)
    both = joined(before)
    as_split = index([(key, label, "train" if split == "val" else split) for key, label, split in ROWS])
    assert both.hash == as_split.hash != before.hash
    assert joined(both).hash == both.hash


@pytest.mark.parametrize(
    ("batch", "threads", "resources", "workers"),
    [
        (64, 1, {"CPU": 8.0}, 8),
        (64, 1, {"CPU": 7.0}, 4),
        (64, 3, {"CPU": 8.0}, 2),
        (64, 16, {"CPU": 8.0}, 1),
        (63, 1, {"CPU": 8.0}, 7),
        (61, 1, {"CPU": 8.0}, 1),
        (64, 1, {"CPU": 64.0, "GPU": 3.0}, 2),
        (2, 1, {"CPU": 64.0, "GPU": 8.0}, 2),
        (64, 1, {"CPU": 0.5}, 1),
    ],
)
def test_as_wide_as_the_cluster_and_the_batch_allow(
    batch: int, threads: int, resources: dict[str, float], workers: int
) -> None:
    assert full_width(_config(batch, threads), resources) == workers


@given(st.integers(1, 512), st.integers(1, 4), st.integers(1, 64))
def test_the_width_divides_the_batch_and_one_more_place_never_narrows_it(batch: int, threads: int, cpus: int) -> None:
    config = _config(batch, threads)
    width, wider = (full_width(config, {"CPU": float(each)}) for each in (cpus, cpus + 1))
    assert batch % width == 0
    assert width * threads <= max(cpus, threads)
    assert wider >= width


def _config(batch: int, threads: int = 1):
    return load_config(
        {
            "run": {"name": "s", "storage": "/x"},
            "data": {"source": "/y"},
            "model": {"name": "reference/lenet"},
            "train": {"global_batch": batch, "threads": threads},
        }
    )
