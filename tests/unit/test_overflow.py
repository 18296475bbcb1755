from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycnn.storage import overflow
from raycnn.storage.cache import Cache
from raycnn.storage.local import LocalStore
from tests.support.caches import (
    ROW_BYTES,
    every,
    fill,
    flip,
    held,
    opened,
    shorten,
    values_of,
)


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
