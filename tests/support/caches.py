"""Tables of a cache for tests: rows named by number."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raycnn.storage.cache import Cache, Table

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


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
