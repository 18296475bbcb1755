"""Rows of one table of the node's cache: read through a map, written in place, each with a checksum."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_log = logging.getLogger(__name__)


class Table:
    """Rows of one shape and dtype, some of them there. Get one from `Cache.table`; not evicted until closed.

    Any number of processes and threads may read and write it at the same time, provided that whoever puts a row puts
    the same bytes. Row numbers are int64[n] and count in the `keys` given to `Cache.table`.
    """

    def __init__(
        self,
        folder: Path,
        keys: npt.NDArray[np.uint8],
        slots: npt.NDArray[np.int64],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.name = folder.name
        self.keys, self.shape, self.dtype = keys, shape, np.dtype(dtype)
        self.bytes_per_row = row_bytes_of(shape, self.dtype)
        self._slots = slots
        self._seeds = np.ascontiguousarray(keys[:, :4]).view(np.uint32).ravel()
        self._checked = np.zeros(len(keys), np.bool_)  # rows whose bytes this process has seen to fit their mark
        self._failed = False
        num_slots = int(slots.max()) + 1
        with contextlib.ExitStack() as files:
            self._marks_file = files.enter_context((folder / "marks").open("r+b", buffering=0))
            fcntl.flock(self._marks_file, fcntl.LOCK_SH)  # ends with the process, however that dies
            self._rows_file = files.enter_context((folder / "rows").open("r+b", buffering=0))
            # mapped for reading only: on a full disk a write through a map kills the process, pwrite raises
            self._marks = np.asarray(np.memmap(self._marks_file, np.uint64, "r", shape=(num_slots,)))
            self._rows = np.asarray(np.memmap(self._rows_file, np.uint8, "r", shape=(num_slots, self.bytes_per_row)))
            os.utime(self._marks_file.fileno())
            self._files = files.pop_all()

    @property
    def complete(self) -> bool:
        """Whether all rows are there, as far as `has` tells."""
        return bool(self._marks[self._slots].all())

    def has(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the rows are there, bool[n], without looking at their bytes: `get` may still find one damaged."""
        there: npt.NDArray[np.bool_] = self._marks[self._slots_of(rows)] != 0
        return there

    def get(
        self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any] | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """The values [n, *shape], in `out` if given, and which of them are valid, bool[n]; the others are arbitrary.

        Raises:
            ValueError: `out` has another shape or dtype, or is not contiguous.
            IndexError: there is no such row.
        """
        slots = self._slots_of(rows)
        out = np.empty((len(rows), *self.shape), self.dtype) if out is None else out
        flat = self._flat(out, len(rows))
        marks = self._marks[slots]
        valid = marks != 0
        if valid.all():
            np.take(self._rows, slots, axis=0, out=flat, mode="clip")  # other modes copy twice
        else:
            flat[valid] = self._rows[slots[valid]]
        for place in np.flatnonzero(valid & ~self._checked[rows]):
            row = rows[place]
            valid[place] = _mark(flat[place], self._seeds[row]) == marks[place]
            if valid[place]:
                self._checked[row] = True
            else:  # so that `has` knows, here and in other processes
                self._write(self._marks_file, np.zeros(1, np.uint64), slots[place])
        return out, valid

    def put(self, rows: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        """Keep values [n, *shape]; on a disk that takes no more, warn once and keep nothing from then on.

        Raises:
            ValueError: the values have another shape or dtype.
            IndexError: there is no such row.
        """
        slots = self._slots_of(rows)
        flat = self._flat(np.ascontiguousarray(values), len(rows))
        for place, slot in enumerate(slots):
            if not self._write(self._rows_file, flat[place], slot):
                return
        for place, slot in enumerate(slots):  # after the bytes: a process killed between leaves the row absent
            mark = np.array([_mark(flat[place], self._seeds[rows[place]])], np.uint64)
            self._checked[rows[place]] = self._write(self._marks_file, mark, slot)

    def close(self) -> None:
        """Let go of the table, which may then be evicted."""
        self._files.close()
        self._marks, self._rows = np.empty(0, np.uint64), np.empty((0, 0), np.uint8)  # a map holds the lock too

    def _slots_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if len(rows) and rows.min() < 0:
            raise IndexError(f"row {rows.min()} of a cache table")
        return self._slots[rows]

    def _flat(self, values: npt.NDArray[Any], num_rows: int) -> npt.NDArray[np.uint8]:
        wanted = (num_rows, *self.shape)
        if values.shape != wanted or values.dtype != self.dtype or not values.flags.c_contiguous:
            raise ValueError(f"contiguous {self.dtype} {wanted} expected, not {values.dtype} {values.shape}")
        return values.reshape(-1).view(np.uint8).reshape(num_rows, self.bytes_per_row)

    def _write(self, file: BinaryIO | io.FileIO, data: npt.NDArray[Any], slot: int) -> bool:
        if not self._failed:
            try:
                self._failed = os.pwrite(file.fileno(), data.data, int(slot) * data.nbytes) != data.nbytes
                reason = "no space left"
            except OSError as error:
                self._failed, reason = True, str(error)
            if self._failed:
                _log.warning("cache table %s takes no more rows: %s", self.name[:8], reason)
        return not self._failed


def row_bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of one row."""
    return math.prod(shape) * dtype.itemsize


def as_bytes(keys: npt.NDArray[np.uint8]) -> list[bytes]:
    """The keys uint8[n, 32] one by one, to look up."""
    found: list[bytes] = np.ascontiguousarray(keys, np.uint8).view("V32")[:, 0].tolist()
    return found


def _mark(row: npt.NDArray[np.uint8], seed: np.uint32) -> int:
    """CRC-32 of a row, seeded by its key, with a bit that makes it differ from 0."""
    return zlib.crc32(row.data, int(seed)) | 1 << 32
