from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycnn.storage.cache import Cache
from tests.support.caches import (
    ROW_BYTES,
    SHAPE,
    SLOT_BYTES,
    every,
    fill,
    flip,
    folder_of,
    held,
    keys_of,
    opened,
    shorten,
    values_of,
)

# Rows


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16", "float64"])
def test_rows_come_back_as_they_were_put(cache: Cache, shape: tuple[int, ...], dtype: str) -> None:
    table = cache.table("a", keys_of(range(6)), shape, dtype)
    assert table is not None
    values = (np.random.default_rng(0).random((6, *shape)) * 200).astype(dtype)
    assert table.bytes_per_row == values[0].nbytes
    rows = np.array([4, 0, 2])
    table.put(rows, values[rows])
    assert table.has(np.arange(6)).tolist() == [True, False, True, False, True, False]
    assert not table.complete
    out = np.empty((4, *shape), dtype)
    found, valid = table.get(np.array([2, 3, 4, 2]), out)
    assert found is out
    assert valid.tolist() == [True, False, True, True]
    assert np.array_equal(found[valid], values[[2, 4, 2]])
    table.put(np.array([1, 3, 5]), values[1::2])
    assert table.complete
    assert np.array_equal(table.get(np.arange(6))[0], values)
    assert [array.shape for array in table.get(np.array([], np.int64))] == [(0, *shape), (0,)]
    table.close()


def test_values_and_rows_that_do_not_fit_are_refused(cache: Cache) -> None:
    table = opened(cache, range(3))
    two = np.arange(2)
    for wrong in (np.zeros((2, 5, 3), np.float32), np.zeros((2, *SHAPE)), np.zeros((3, *SHAPE), np.float32)):
        with pytest.raises(ValueError, match="expected"):
            table.put(two, wrong)
        with pytest.raises(ValueError, match="expected"):
            table.get(two, wrong)
    with pytest.raises(ValueError, match="contiguous"):
        table.get(two, np.zeros((4, *SHAPE), np.float32)[::2])
    for row in (-1, 3):
        with pytest.raises(IndexError):
            table.get(np.array([row]))
    table.close()
    with pytest.raises(ValueError, match="uint8"):
        cache.table("a", np.zeros((3, 31), np.uint8), SHAPE, "float32")
    assert cache.table("a", keys_of([]).reshape(0, 32), SHAPE, "float32") is None


def test_a_closed_table_takes_nothing(cache: Cache) -> None:
    table = opened(cache, range(3))
    table.close()
    with pytest.raises(ValueError, match="closed"):
        table.put(np.array([0]), values_of([0]))
    with pytest.raises(IndexError):
        table.get(np.array([0]))


def test_rows_of_one_content_are_one(cache: Cache) -> None:
    table = opened(cache, [7, 8, 7])
    table.put(np.array([0]), values_of([7]))
    assert table.get(every(table))[1].tolist() == [True, False, True]
    table.close()


def test_name_shape_and_dtype_tell_tables_apart(cache: Cache) -> None:
    fill(cache, range(3))
    assert held(cache, range(3), "b") == []
    for shape, dtype in (((5, 3), "float32"), (SHAPE, "int32")):
        table = cache.table("a", keys_of(range(3)), shape, dtype)
        assert table is not None
        assert not table.has(every(table)).any()
        table.close()
    assert held(cache, range(3)) == [0, 1, 2]
    table = cache.table("a", keys_of(range(3)), tuple(np.array(SHAPE)), np.float32)  # the same, said otherwise
    assert table is not None
    assert table.complete
    table.close()


def test_rows_follow_their_content_when_the_data_change(cache: Cache) -> None:
    old = opened(cache, range(10))
    old.put(np.arange(8), values_of(range(8)))
    numbers = [12, 3, 9, 11, 0, 7]  # two new ones, one that was never put; 1, 2, 4, 5, 6 and 8 are gone
    new = opened(cache, numbers)
    values, valid = new.get(every(new))
    assert valid.tolist() == [False, True, False, False, True, True]
    assert np.array_equal(values[valid], values_of([3, 0, 7]))
    new.put(np.array([2]), values_of([9]))
    assert np.array_equal(old.get(np.array([9]))[0], values_of([9]))  # one table, whoever opened it when
    new.close()
    old.close()


# Damage


@pytest.mark.parametrize(("file", "at"), [("rows", 2 * ROW_BYTES), ("rows", 3 * ROW_BYTES - 1), ("marks", 2 * 8)])
def test_a_flipped_bit_makes_its_row_absent(cache: Cache, file: str, at: int) -> None:
    fill(cache, range(5))
    flip(folder_of(cache) / file, at)
    table, other = opened(cache, range(5)), opened(cache, range(5))
    assert table.get(every(table))[1].tolist() == [True, True, False, True, True]
    assert not table.has(every(table))[2]
    assert not other.has(every(other))[2]
    other.close()
    table.put(np.array([2]), values_of([2]))
    table.close()
    assert held(cache, range(5)) == [0, 1, 2, 3, 4]


def test_rows_left_by_keys_that_were_lost_belong_to_nobody(cache: Cache) -> None:
    fill(cache, range(3))
    keys = folder_of(cache) / "keys"
    before = keys.read_bytes()
    fill(cache, range(6))
    keys.write_bytes(before)  # as after a power loss
    assert held(cache, [0, 1, 2, 13, 14, 15]) == [0, 1, 2]


def double(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:32] * 2)


@pytest.mark.parametrize("damage", [shorten, Path.unlink, lambda path: (path.unlink(), path.mkdir())])
@pytest.mark.parametrize("file", ["rows", "marks", "keys", ""])
def test_a_damaged_table_is_made_anew_with_one_warning(
    cache: Cache, file: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    fill(cache, range(5))
    folder = folder_of(cache)
    if file:
        damage(folder / file)
    else:
        shutil.rmtree(folder)
        folder.write_text("no folder")
    assert held(cache, range(5)) == []
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text
    fill(cache, range(5))
    assert held(cache, range(5)) == [0, 1, 2, 3, 4]


def test_doubled_keys_are_damage(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    fill(cache, range(5))
    double(folder_of(cache) / "keys")
    assert held(cache, range(5)) == []
    assert "damaged" in caplog.text


def test_a_folder_that_cannot_be_used_means_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert Cache(tmp_path / "file", 10**6).table("a", keys_of(range(2)), SHAPE, "float32") is None
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"raycnn-cache-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert Cache(tmp_path, 10**6).table("a", keys_of(range(2)), SHAPE, "float32") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert not any((tmp_path / "elsewhere").iterdir())


def test_only_the_user_may_look_and_nothing_else_in_the_folder_is_touched(tmp_path: Path) -> None:
    cache = Cache(tmp_path, SLOT_BYTES)
    stranger = tmp_path / ("0" * 64)
    (tmp_path / ".hidden").mkdir()
    stranger.mkdir()
    (stranger / "marks").write_bytes(bytes(10**6))
    fill(cache, range(1))
    fill(cache, range(1), "b")
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", "0" * 64, f"raycnn-cache-{os.getuid()}"}
    assert (tmp_path / f"raycnn-cache-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    assert folder_of(cache).stat().st_mode & 0o777 == 0o700
