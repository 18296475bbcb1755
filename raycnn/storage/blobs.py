"""Byte strings of a set in the node's cache, one behind the other: where each lies follows from the lengths alone."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

_log = logging.getLogger(__name__)


class Blobs:
    """Byte strings whose lengths are known, some of them there. Get one from `Cache.blobs`; not evicted until closed.

    Any number of processes and threads may read and write it at the same time, provided that whoever puts a string
    puts the same bytes. Whoever takes one checks its digest: a torn write or a damaged disk shows in nothing else.
    """

    def __init__(self, folder: Path, lengths: npt.NDArray[np.int64]) -> None:
        self._name, self._failed = folder.name, False
        self._ends = np.cumsum(lengths, dtype=np.int64)
        with contextlib.ExitStack() as files:
            self._marks_file = files.enter_context((folder / "marks").open("r+b", buffering=0))
            fcntl.flock(self._marks_file, fcntl.LOCK_SH)  # ends with the process, however that dies
            self._rows_file = files.enter_context((folder / "rows").open("r+b", buffering=0))
            os.utime(self._marks_file.fileno())
            # mapped for reading only: on a full disk a write through a map kills the process, pwrite raises
            self._marks = np.asarray(np.memmap(self._marks_file, np.uint8, "r"))
            self._files = files.pop_all()

    def get(self, number: int) -> bytes | None:
        """What was put for this number, None where nothing was or the disk fails."""
        if not self._marks[number]:
            return None
        start, end = self._place(number)
        with contextlib.suppress(OSError):
            return os.pread(self._rows_file.fileno(), end - start, start)
        return None

    def put(self, number: int, data: bytes) -> None:
        """Keep a string; on a disk that takes no more, warn once and keep nothing from then on.

        Raises:
            ValueError: it has another length.
        """
        start, end = self._place(number)
        if len(data) != end - start:
            raise ValueError(f"{end - start} bytes expected, not {len(data)}")
        if self._failed:
            return
        try:
            if os.pwrite(self._rows_file.fileno(), data, start) != len(data):
                raise OSError("no space left")
            os.pwrite(self._marks_file.fileno(), b"\1", number)  # after the bytes
        except OSError as error:
            self._failed = True
            _log.warning("cached bytes %s: no more are kept: %s", self._name[:8], error)

    def close(self) -> None:
        """Let go of it; it may then be evicted."""
        self._files.close()
        self._marks = np.empty(0, np.uint8)  # a map holds the lock too

    def _place(self, number: int) -> tuple[int, int]:
        return int(self._ends[number - 1]) if number else 0, int(self._ends[number])
