from __future__ import annotations

import errno
import hashlib
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from raycnn.storage import cache as module
from raycnn.storage import overflow
from raycnn.storage.cache import Cache, Table
from raycnn.storage.local import LocalStore

SHAPE = (3, 5)
ROW_BYTES = 60
SLOT_BYTES = ROW_BYTES + 8 + 32
SPAWN = multiprocessing.get_context("spawn")


def keys_of(numbers: range | list[int]) -> npt.NDArray[np.uint8]:
    return np.array([list(hashlib.sha256(str(number).encode()).digest()) for number in numbers], np.uint8)


def values_of(numbers: range | list[int]) -> npt.NDArray[np.float32]:
    """What a pure function says of these images."""
    return np.stack([np.random.default_rng(number).standard_normal(SHAPE, np.float32) for number in numbers])


def opened(cache: Cache, numbers: range | list[int], name: str = "a") -> Table:
    table = cache.table(name, keys_of(numbers), SHAPE, np.dtype(np.float32))
    assert table is not None
    return table


def every(table: Table) -> npt.NDArray[np.int64]:
    return np.arange(len(table.keys))


def fill(cache: Cache, numbers: range | list[int], name: str = "a") -> None:
    table = opened(cache, numbers, name)
    table.put(every(table), values_of(numbers))
    table.close()


def held(cache: Cache, numbers: range | list[int], name: str = "a") -> list[int]:
    """The numbers whose rows are there; those that are have the right bytes."""
    table = opened(cache, numbers, name)
    values, valid = table.get(every(table))
    table.close()
    assert np.array_equal(values[valid], values_of(numbers)[valid])
    return [number for number, is_there in zip(numbers, valid, strict=True) if is_there]


def folder_of(cache: Cache, name: str = "a") -> Path:
    table = opened(cache, range(1), name)
    table.close()
    return cache.folder / f"raycnn-cache-{os.getuid()}" / table.name


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    with path.open("r+b") as file:  # in place
        file.write(data)


def in_child(target: Callable[..., None], *args: Any) -> int | None:
    child = SPAWN.Process(target=target, args=args)
    child.start()
    child.join()
    return child.exitcode


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "node", 10**6)


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


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


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


# The limit


def aged(cache: Cache, name: str, age: int) -> None:
    os.utime(folder_of(cache, name) / "marks", (age, age))


def test_the_least_recently_used_goes_first_and_the_limit_holds(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 12 * SLOT_BYTES)
    for name in "abc":
        fill(cache, range(4), name)
    for age, name in enumerate("abc"):
        aged(cache, name, age)
    opened(cache, range(4), "a").close()  # used again
    fill(cache, range(4), "d")
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert used == 12 * SLOT_BYTES
    tables = {name: hashlib.sha256(f"{name}\n{SHAPE}\n<f4".encode()).hexdigest() for name in "abcd"}
    left = {path.name for path in (tmp_path / f"raycnn-cache-{os.getuid()}").iterdir()} - {"lock"}
    assert left == {tables[name] for name in "acd"}
    assert held(cache, range(4), "a") == [0, 1, 2, 3]


def test_what_cannot_fit_is_not_cached_and_evicts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path, 12 * SLOT_BYTES)
    fill(cache, range(4))
    assert cache.table("b", keys_of(range(13)), SHAPE, "float32") is None
    assert "do not fit" in caplog.text
    assert held(cache, range(4)) == [0, 1, 2, 3]
    monkeypatch.setattr(module, "_SPARE", 1.0)
    assert cache.table("b", keys_of(range(2)), SHAPE, "float32") is None


def test_rows_nobody_asks_for_go_when_room_is_needed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 12 * SLOT_BYTES)
    fill(cache, range(10))
    assert cache.table("a", keys_of(range(14)), SHAPE, "float32") is None
    assert held(cache, range(10)) == list(range(10))
    table = opened(cache, range(10))
    assert cache.table("a", keys_of(range(5, 15)), SHAPE, "float32") is None  # in use
    table.close()
    assert held(cache, range(5, 15)) == []
    fill(cache, range(5, 15))
    assert held(cache, range(5, 15)) == list(range(5, 15))


def hold(cache: Cache, ready: Connection) -> None:
    table = opened(cache, range(4))
    ready.send("open")
    signal.pause()
    table.close()


def test_a_table_open_in_a_living_process_is_not_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 4 * SLOT_BYTES)
    fill(cache, range(4))
    here, there = SPAWN.Pipe()
    child = SPAWN.Process(target=hold, args=(cache, there))
    child.start()
    assert here.recv() == "open"
    assert cache.table("b", keys_of(range(4)), SHAPE, "float32") is None
    assert held(cache, range(4)) == [0, 1, 2, 3]
    child.kill()
    child.join()
    fill(cache, range(4), "b")
    assert held(cache, range(4), "b") == [0, 1, 2, 3]


# A full disk


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_too_full_for_the_table_means_no_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cache, range(4))
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert cache.table("b", keys_of(range(4)), SHAPE, "float32") is None
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: (real(*args), full()))
    assert cache.table("a", keys_of(range(8)), SHAPE, "float32") is None
    monkeypatch.undo()
    sizes = {path.name: path.stat().st_size for path in cache.folder.rglob("*") if path.is_file()}
    assert sizes == {"lock": 0, "keys": 4 * 32, "marks": 4 * 8, "rows": 4 * ROW_BYTES}
    assert held(cache, range(8)) == [0, 1, 2, 3]


@pytest.mark.parametrize("file", ["_rows_file", "_marks_file"])
def test_a_disk_that_takes_no_more_rows_ends_caching_with_one_warning(
    cache: Cache, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cache, range(2))
    table = opened(cache, range(4))
    with open("/dev/full", "wb") as device:
        os.dup2(device.fileno(), getattr(table, file).fileno(), inheritable=False)
    table.put(np.array([2]), values_of([2]))
    table.put(np.array([3]), values_of([3]))
    assert table.get(every(table))[1].tolist() == [True, True, False, False]
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    table.close()


# Several processes


def work(cache: Cache, seed: int) -> None:
    """Put all rows in an order of one's own, reading all the time."""
    numbers = list(np.random.default_rng(seed).permutation(40))
    table = opened(cache, numbers)
    for row, number in enumerate(numbers):
        values, valid = table.get(every(table))
        assert np.array_equal(values[valid], values_of(numbers)[valid])
        assert valid[:row].all()
        table.put(np.array([row]), values_of([number]))
    assert table.complete
    table.close()


def test_processes_share_a_table(cache: Cache) -> None:
    children = [SPAWN.Process(target=work, args=(cache, seed)) for seed in range(3)]
    for child in children:
        child.start()
    work(cache, 3)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert held(cache, range(40)) == list(range(40))


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def put_and_die(cache: Cache, writes: int) -> None:
    real, left = os.pwrite, [writes]

    def pwrite(*args: Any) -> int:
        left[0] -= 1
        return real(*args) if left[0] >= 0 else die() or 0

    os.pwrite = pwrite
    fill(cache, range(2))


@pytest.mark.parametrize(("writes", "there"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2)])
def test_a_row_is_there_only_after_its_bytes(cache: Cache, writes: int, there: int) -> None:
    assert in_child(put_and_die, cache, writes) == (0 if writes == 4 else -signal.SIGKILL)
    table = opened(cache, range(2))
    assert table.has(every(table)).sum() == there
    assert table.get(every(table))[1].sum() == there
    table.close()


def open_and_die(cache: Cache, step: str, numbers: range, name: str) -> None:
    setattr(shutil if step == "rmtree" else Path, step, die)
    opened(cache, numbers, name).close()


@pytest.mark.parametrize(
    ("num_slots", "step", "numbers", "name"),
    [
        pytest.param(10, "replace", range(6), "a", id="growing"),
        pytest.param(20, "replace", range(6), "b", id="making"),
        pytest.param(20, "rename", range(6), "b", id="made"),
        pytest.param(6, "rename", range(6), "b", id="before evicting"),
        pytest.param(6, "rmtree", range(6), "b", id="evicting"),
    ],
)
def test_a_process_killed_while_it_changes_tables_leaves_a_sound_cache(
    tmp_path: Path, num_slots: int, step: str, numbers: range, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path, num_slots * SLOT_BYTES)
    fill(cache, range(4))
    assert in_child(open_and_die, cache, step, numbers, name) == -signal.SIGKILL
    assert held(cache, range(4)) == ([] if step == "rmtree" else [0, 1, 2, 3])
    fill(cache, range(4), "b")
    assert held(cache, range(4), "b") == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"lock", "keys", "marks", "rows"}
    assert not list(tmp_path.rglob(".*"))
    assert not caplog.records


def test_tables_grow_under_many_hands(cache: Cache) -> None:
    together = threading.Barrier(4, timeout=20)  # a hand that failed

    def grow(hand: int) -> None:
        for turn in range(10):
            together.wait()
            fill(cache, [4 * turn + hand])

    with ThreadPoolExecutor(4) as hands:
        list(hands.map(grow, range(4)))
    assert held(cache, range(40)) == list(range(40))


# Overflow


def nodes(tmp_path: Path, count: int) -> list[Cache]:
    return [Cache(tmp_path / f"node{number}", 10**6, LocalStore(tmp_path / "store")) for number in range(count)]


def push(cache: Cache, numbers: range | list[int]) -> None:
    table = opened(cache, numbers)
    cache.push(table)
    table.close()


def pieces(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store").rglob("*.rows"))


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "_PIECE_BYTES", 4 * ROW_BYTES + 1)


@pytest.mark.usefixtures("_small_pieces")
def test_another_node_finds_what_was_pushed(tmp_path: Path) -> None:
    one, two, three = nodes(tmp_path, 3)
    table = opened(one, range(12))
    table.put(np.arange(10), values_of(range(10)))
    one.push(table)
    table.close()
    assert sorted(path.stat().st_size for path in pieces(tmp_path)) == [2 * ROW_BYTES, *[4 * ROW_BYTES] * 2]
    assert held(two, [15, 9, 1, 11, 2]) == [9, 1, 2]  # by content, and only what is asked for
    assert held(three, range(12)) == list(range(10))


@pytest.mark.usefixtures("_small_pieces")
def test_a_push_adds_only_what_is_lacking(tmp_path: Path) -> None:
    one, two, three = nodes(tmp_path, 3)
    table = opened(two, range(10))  # before the other pushes: it knows nothing of it
    fill(one, range(6))
    push(one, range(6))
    before = {path: path.stat().st_mtime_ns for path in pieces(tmp_path)}
    table.put(every(table), values_of(range(10)))
    two.push(table)
    table.close()
    push(one, range(6))
    after = {path: path.stat().st_mtime_ns for path in pieces(tmp_path)}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    assert held(three, range(10)) == list(range(10))


def test_two_nodes_that_push_at_once_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = nodes(tmp_path, 3)
    fill(one, range(3))
    fill(two, range(3, 6))
    real = overflow._write_index

    def late(*args: Any) -> None:
        monkeypatch.setattr(overflow, "_write_index", real)
        push(two, range(3, 6))
        real(*args)

    monkeypatch.setattr(overflow, "_write_index", late)
    push(one, range(3))
    assert held(three, range(6)) == list(range(6))


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("damage", [lambda path: flip(path, 7), Path.unlink, shorten])
def test_a_damaged_piece_is_refused_and_the_next_push_repairs_it(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = nodes(tmp_path, 3)
    fill(one, range(8))
    push(one, range(8))
    damage(pieces(tmp_path)[0])
    assert len(held(two, range(8))) == 4
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text
    fill(two, range(8))
    push(two, range(8))
    assert held(three, range(8)) == list(range(8))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("at", [0, 40, 100, -1])
def test_a_damaged_index_is_refused_and_the_next_push_replaces_it(
    tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = nodes(tmp_path, 3)
    fill(one, range(8))
    push(one, range(8))
    flip(next((tmp_path / "store").rglob("index")), at)
    assert held(two, range(8)) == []
    assert "index" in caplog.text
    push(one, range(8))
    assert held(three, range(8)) == list(range(8))


def test_an_overflow_that_cannot_be_used_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "node", 10**6, LocalStore(tmp_path / "file"))
    fill(cache, range(3))
    push(cache, range(3))
    assert held(cache, range(3)) == [0, 1, 2]
    assert "without the rows" in caplog.text


def test_a_cache_goes_to_other_processes(tmp_path: Path) -> None:
    cache = nodes(tmp_path, 1)[0]
    assert pickle.loads(pickle.dumps(cache)) == cache
