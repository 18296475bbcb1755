from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycnn.storage import cache as module
from raycnn.storage.cache import Cache
from tests.support.caches import (
    ROW_BYTES,
    SHAPE,
    SLOT_BYTES,
    SPAWN,
    every,
    fill,
    folder_of,
    held,
    in_child,
    keys_of,
    opened,
    values_of,
)

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
