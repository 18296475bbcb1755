"""Which rows a fold validates: arithmetic over the manifest, by class, groups and equal images together."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycnn.config import hashed, identity, load_config
from raycnn.data.decode import Limits
from raycnn.data.folds import Fold, as_fold, assign, fold_of, read_rows
from raycnn.data.manifest import QUARANTINE, SCHEMA, Index, content_hash, key_hashes, sort_rows, write_index
from raycnn.errors import ConfigError, DataError
from raycnn.storage.local import LocalStore

CLASSES = ("a", "b", "c")
LEAST: dict[str, Any] = {
    "run": {"name": "s", "storage": "/x"},
    "data": {"source": "/y"},
    "model": {"name": "reference/lenet"},
}


def rows_of(labels: list[Any], split: str = "train", kind: str = "class", **columns: list[Any]) -> pa.Table:
    """A manifest's rows, image-0 and so on, each with bytes of its own."""
    keys = columns.pop("keys", [f"image-{number}" for number in range(len(labels))])
    shown = columns.pop("images", keys)
    found = []
    for number, (key, label, image) in enumerate(zip(keys, labels, shown, strict=True)):
        target = {
            "class": {"label": label, "labels": [label]},
            "classes": {"label": -1, "labels": label},
            "number": {"label": -1, "value": label},
        }[kind]
        row = {"key": key, "offset": 0, "length": 9, "split": split, "size": 9, "width": 8, "height": 8, **target}
        row |= {"sha256": hashlib.sha256(image.encode()).digest(), "key_hash": 0}
        found.append(row | {name: values[number] for name, values in columns.items()})
    table = pa.Table.from_pylist(found, SCHEMA)
    return table.set_column(SCHEMA.get_field_index("key_hash"), "key_hash", pa.array(key_hashes(table)))


def index_of(*tables: pa.Table, kind: Any = "class") -> Index:
    manifest = sort_rows(pa.concat_tables(tables))
    hash = content_hash(manifest, kind, CLASSES)
    return Index(hash, "/y", "/x", kind, CLASSES, manifest, QUARANTINE.empty_table(), [], [], Limits(1, 1))


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(2, 7), st.integers(0, 5), st.randoms()
)  # fmt: skip
def test_folds_differ_by_one_row_in_each_class_and_in_all_in_whatever_order_the_rows_come(
    labels: list[int], folds: int, seed: int, random: Any
) -> None:
    rows = rows_of(labels)
    numbers = assign(rows, "class", folds, seed)
    assert np.ptp(np.bincount(numbers, minlength=folds)) <= 1
    for label in set(labels):
        assert np.ptp(np.bincount(numbers[np.array(labels) == label], minlength=folds)) <= 1
    order = list(range(len(labels)))
    random.shuffle(order)
    assert np.array_equal(assign(rows.take(order), "class", folds, seed), numbers[order])


def test_another_seed_makes_other_folds() -> None:
    rows = rows_of([0, 1] * 50)
    assert not np.array_equal(assign(rows, "class", 5, 0), assign(rows, "class", 5, 1))


def test_the_folds_are_those_of_the_day_they_were_written() -> None:
    """Else runs that have begun would go on with other rows."""
    labels = [0, 1, 2] * 4
    assert assign(rows_of(labels), "class", 3, 0).tolist() == [0, 1, 2, 0, 1, 2, 1, 0, 1, 2, 2, 0]
    grouped = rows_of(labels, group=["g", "h", None, "g"] * 3)
    assert assign(grouped, "class", 3, 0).tolist() == [0, 1, 2, 0, 0, 1, 0, 0, 0, 1, 1, 0]


def test_groups_stay_together_and_share_out_the_classes() -> None:
    rng = np.random.default_rng(0)
    groups = [f"patient-{number // 6}" for number in range(600)]
    labels = [int(rng.integers(3)) if number % 4 else 0 for number in range(600)]
    rows = rows_of(labels, group=groups)
    numbers = assign(rows, "class", 5, 0)
    for patient in set(groups):
        assert len(set(numbers[[group == patient for group in groups]])) == 1
    assert np.bincount(numbers).tolist() == [120] * 5
    for label in range(3):
        counts = np.bincount(numbers[np.array(labels) == label], minlength=5)
        assert np.ptp(counts) <= 0.05 * counts.sum()


def test_groups_of_one_class_each_are_dealt_by_class() -> None:
    groups = [f"site-{number // 6}" for number in range(180)]
    labels = [number // 60 for number in range(180)]
    numbers = assign(rows_of(labels, group=groups), "class", 5, 0)
    for label in range(3):
        assert np.bincount(numbers[60 * label : 60 * label + 60]).tolist() == [12] * 5


def test_groups_of_uneven_size_are_shared_out_evenly() -> None:
    sizes = [60, 50, 40, 30, 20, 20, 20, 20, 20, 20]
    groups = [f"site-{number}" for number, size in enumerate(sizes) for _ in range(size)]
    numbers = assign(rows_of([0, 1] * 150, group=groups), "class", 3, 0)
    assert np.ptp(np.bincount(numbers)) <= min(sizes)


def test_equal_images_stay_together_and_so_do_their_groups() -> None:
    images = [f"image-{number // 2}" for number in range(40)]
    numbers = assign(rows_of([0, 1] * 20, images=images), "class", 5, 0)
    assert np.array_equal(numbers[::2], numbers[1::2])
    groups: list[str | None] = ["g", "g", "h", "h", None, None, *[None] * 34]
    linked = [f"image-{number}" for number in range(40)]
    linked[2] = linked[1] = linked[5]  # of g, of h, and alone
    numbers = assign(rows_of([0, 1] * 20, images=linked, group=groups), "class", 5, 0)
    assert len(set(numbers[[0, 1, 2, 3, 5]])) == 1
    assert np.bincount(numbers).min() > 4


def test_rows_of_several_classes_are_dealt_by_their_rarest_and_numbers_by_chance() -> None:
    lists = [[0]] * 30 + [[0, 1]] * 10 + [[0, 1, 2]] * 5 + [[]] * 5
    numbers = assign(rows_of(lists, kind="classes"), "classes", 5, 0)
    for some in (slice(0, 30), slice(30, 40), slice(40, 45), slice(45, 50)):
        assert np.ptp(np.bincount(numbers[some], minlength=5)) == 0
    numbers = assign(rows_of([float(number) for number in range(50)], kind="number"), "number", 5, 0)
    assert np.bincount(numbers).tolist() == [10] * 5


def test_an_index_seen_as_a_fold() -> None:
    names = [[f"{split}-{number}" for number in range(24)] for split in ("train", "val", "test")]
    labels = [0, 1, 2] * 8
    splits = ("train", "val", "test")
    index = index_of(*(rows_of(labels, split, keys=keys) for split, keys in zip(splits, names, strict=True)))
    seen = [as_fold(index, Fold(number, 4, 0)) for number in range(4)]
    held = [set(each.rows("val")["key"].to_pylist()) for each in seen]
    assert set.union(*held) == {*names[0], *names[1]}
    assert sum(map(len, held)) == 48
    for each, own in zip(seen, held, strict=True):
        assert set(each.rows("train")["key"].to_pylist()) == {*names[0], *names[1]} - own
        assert each.rows("test").equals(index.rows("test"))
        assert each.hash == index.hash
        assert each.manifest.equals(sort_rows(each.manifest))
        assert each.manifest.schema == SCHEMA
    assert as_fold(seen[2], Fold(1, 4, 0)).manifest.equals(seen[1].manifest)
    assert as_fold(index, None) is index
    put_aside = replace(index, manifest=seen[3].manifest)
    assert as_fold(put_aside, Fold(0, 4, 0)).manifest.equals(seen[0].manifest), "it does not matter what split them"


def test_a_stored_index_is_seen_as_its_runs_settings_say(tmp_path: Any) -> None:
    store, index = LocalStore(tmp_path), index_of(rows_of([0, 1, 2] * 8))
    write_index(index, store)
    settings = load_config(LEAST, {"train.folds": 4, "train.fold": 3, "data.split_seed": 7})
    found = read_rows(store, index.hash, identity(settings), ("key", "target", "split"))
    expected = as_fold(index, Fold(3, 4, 7))
    for split in ("train", "val"):
        assert found.rows(split)["key"].equals(expected.rows(split)["key"])
    plain = read_rows(store, index.hash, identity(load_config(LEAST)), ("key", "split"))
    assert plain.manifest.column_names == ["key", "split"]


@pytest.mark.parametrize(
    ("rows", "folds", "message"),
    [
        (rows_of([0, 1, 2] * 2, group=["g", "h"] * 3), 3, "6 rows, as they stay together, fill only 2 of 3 folds"),
        (rows_of([0, 1] * 9 + [2]), 3, "classes with all images in one fold: c"),
        (rows_of([0, 1] * 9 + [2, 2], images=[*map(str, range(18)), "x", "x"]), 3, "in one fold: c"),
        (rows_of([0, 1] * 9), 3, "in one fold: c"),
    ],
)
def test_too_little_for_so_many_folds(rows: pa.Table, folds: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_fold(index_of(rows), Fold(0, folds, 0))


def test_the_settings() -> None:
    assert fold_of(identity(load_config(LEAST, {"train.folds": 4}))) is None
    assert fold_of(identity(load_config(LEAST, {"train.folds": 4, "train.fold": 0}))) == Fold(0, 4, 0)
    assert not [path for path in hashed(load_config(LEAST)) if "fold" in path], "runs of before keep their identity"
    for wrong in ({"train.fold": 0}, {"train.folds": 3, "train.fold": 3}, {"train.folds": 1}):
        with pytest.raises(ConfigError, match="train"):
            load_config(LEAST, wrong)
