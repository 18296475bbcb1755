"""Predictions of the rows so far, kept in the run's folder until the whole file is there."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from raycnn.storage import Store

_PART_S: Final = 30.0
_NAME: Final = re.compile(r"(\d{12})-(\d{12})\.parquet")


@dataclass
class Parts:
    """Tables in the order of their rows, several to a file.

    Args:
        store: the folder of this prediction's parts.
        of: digest of all that decides the rows; parts of anything else are not read.
        schema: of every table.
    """

    store: Store
    of: str
    schema: pa.Schema
    rows: int = 0
    _waiting: list[pa.Table] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def read(self) -> Iterator[pa.Table]:
        """What an interrupted prediction has kept, from the first row on, table by table as it was added."""
        found = {}
        for entry in self.store.list(f"{self.of}/"):
            if match := _NAME.fullmatch(entry.key.rpartition("/")[2]):
                found[int(match[1])] = int(match[2]), entry.key
        while self.rows in found:
            stop, key = found[self.rows]
            try:
                part = pq.ParquetFile(pa.BufferReader(self.store.get(key)))
                tables = [part.read_row_group(number) for number in range(part.num_row_groups)]
            except (pa.ArrowException, OSError):  # damaged: computed again
                return
            if part.schema_arrow != self.schema or sum(map(len, tables)) != stop - self.rows:
                return
            self.rows = stop
            yield from tables

    def add(self, table: pa.Table) -> None:
        """Keep a table, at the latest half a minute from now, when another one is added."""
        self._waiting.append(table)
        if time.monotonic() - self._since < _PART_S:
            return
        buffer, stop = io.BytesIO(), self.rows + sum(map(len, self._waiting))
        with pq.ParquetWriter(buffer, self.schema) as writer:
            for each in self._waiting:
                writer.write_table(each)
        self.store.put(f"{self.of}/{self.rows:012d}-{stop:012d}.parquet", buffer.getvalue())
        self.rows, self._waiting, self._since = stop, [], time.monotonic()

    def clear(self) -> None:
        """Remove the parts, and those of what was never finished."""
        self.store.delete([entry.key for entry in self.store.list()])
