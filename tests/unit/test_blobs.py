"""Byte strings in the node's cache."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from raycnn.storage.cache import Blobs, Cache
from tests.support.caches import fill, flip, held, in_child

Open = Callable[..., Blobs]
STRINGS = [b"first", b"", b"third one", b"x" * 1000]
LENGTHS: npt.NDArray[np.int64] = np.array([len(each) for each in STRINGS])


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens sets, and closes them in the end."""
    with contextlib.ExitStack() as stack:

        def open_(cache: Cache, name: str = "a") -> Blobs:
            blobs = cache.blobs(name, LENGTHS)
            assert blobs is not None
            stack.callback(blobs.close)
            return blobs

        yield open_


def put(cache: Cache, numbers: range = range(4)) -> None:
    blobs = cache.blobs("a", LENGTHS)
    assert blobs is not None
    for number in numbers:
        blobs.put(number, STRINGS[number])
    blobs.close()


def test_what_one_process_puts_others_have(cache: Cache, opened: Open) -> None:
    assert in_child(put, cache, range(2)) == 0
    assert in_child(put, cache, range(3, 4)) == 0
    blobs = opened(cache)
    assert [blobs.get(number) for number in range(4)] == [b"first", b"", None, b"x" * 1000]
    later = opened(cache)
    blobs.put(2, STRINGS[2])
    assert later.get(2) == STRINGS[2]
    assert opened(cache, "b").get(0) is None
    with pytest.raises(ValueError, match="5 bytes expected, not 4"):
        blobs.put(0, b"four")


def test_the_limit_holds_for_tables_and_strings_together(tmp_path: Path, opened: Open) -> None:
    cache = Cache(tmp_path, 1300)
    fill(cache, range(4))
    blobs = opened(cache)  # 1018 bytes: the table goes
    assert held(Cache(tmp_path, 10**6), range(4)) == []
    assert cache.blobs("b", LENGTHS) is None  # in use
    blobs.close()
    fill(cache, range(10))
    assert opened(cache).get(0) is None


def test_a_set_that_lost_bytes_is_made_anew(cache: Cache, opened: Open) -> None:
    put(cache)
    (folder,) = cache.folder.glob("*/*/rows")
    os.truncate(folder, 10)
    assert opened(cache).get(0) is None


def test_flipped_bytes_are_given_back_for_the_caller_to_judge(cache: Cache, opened: Open) -> None:
    put(cache)
    (rows,) = cache.folder.glob("*/*/rows")
    flip(rows, 0)
    assert opened(cache).get(0) == b"girst"


def test_a_disk_that_takes_no_more_is_told_once(
    cache: Cache, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = opened(cache)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for number in (0, 2, 3):
        blobs.put(number, STRINGS[number])
        assert blobs.get(number) is None
    assert len(caplog.records) == 1


def test_without_a_usable_folder_or_room_nothing_is_kept_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert Cache(tmp_path / "file", 10**6).blobs("a", LENGTHS) is None
    assert Cache(tmp_path / "node", 1017).blobs("a", LENGTHS) is None
    assert [record.message[:17] for record in caplog.records] == ["nothing is cached"] * 2
    assert Cache(tmp_path / "node", 10**6).blobs("a", LENGTHS[1:2]) is None
