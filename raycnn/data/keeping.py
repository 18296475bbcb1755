"""Bytes of images kept in the cache of whichever node reads them, so that it fetches each of them once."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from raycnn.storage.cache import Blobs, Cache

_opened: Final[dict[Keeper, Blobs | None]] = {}  # by this process, which thereby protects them from eviction
_opening: Final = threading.Lock()


@dataclass(frozen=True)
class Keeper:
    """Which cache keeps the bytes of a table's rows; picklable.

    Args:
        cache: of any node, at the same path on each.
        name: of the rows, by their contents.
    """

    cache: Cache
    name: str

    @classmethod
    def of(cls, cache: Cache, table: pa.Table) -> Keeper:
        """For the rows of a table with the columns sha256 and length."""
        digest = hashlib.sha256()
        for batch in table.select(["sha256", "length"]).to_batches(max_chunksize=65536):
            digest.update(b"".join(batch["sha256"].to_pylist()))
            digest.update(batch["length"].to_numpy().tobytes())
        return cls(cache, digest.hexdigest())

    def open(self, table: pa.Table) -> Kept | None:
        """What this node keeps of this very table's rows, open until `close`; None if nothing can be kept."""
        with _opening:
            if self not in _opened:
                _opened[self] = self.cache.blobs(self.name, table["length"].to_numpy().astype(np.int64))
            blobs = _opened[self]
        return None if blobs is None else Kept(blobs)

    def close(self) -> None:
        """Let this process's hold go: where no other one has it open either, it may be evicted."""
        with _opening:
            blobs = _opened.pop(self, None)
        if blobs is not None:
            blobs.close()


class Kept:
    """The bytes of rows, by row number and digest; counts what it had."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs, self._lock = blobs, threading.Lock()
        self.hits = 0

    def get(self, row: int, sha256: bytes) -> bytes | None:
        """The bytes of this digest, None if they are not there: what differs counts for nothing."""
        data = self._blobs.get(row)
        if data is None or hashlib.sha256(data).digest() != sha256:
            return None
        with self._lock:
            self.hits += 1
        return data

    def put(self, row: int, data: bytes) -> None:
        """Keep what was fetched, and found to have its digest."""
        self._blobs.put(row, data)
