"""A Parquet file of rows in order, of which those so far are kept in the run's folder until all are there."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from raycnn.data.reader import COLUMNS
from raycnn.storage import Store, open_store

_PART_S: Final = 30.0
_NAME: Final = re.compile(r"(\d{12})-(\d{12})\.parquet")


@dataclass
class Parts:
    """Tables in the order of their rows, several to a file.

    Args:
        store: the folder of this file's parts.
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
        """What was kept before an interruption, from the first row on, table by table as it was added."""
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


def write(parts: Parts, fresh: Callable[[int], Iterator[pa.Table]], target: Store, key: str) -> int:
    """Write one file of the rows that were kept and those that follow; it appears only when it is complete.

    Args:
        parts: where rows are kept meanwhile; cleared at the end.
        fresh: the tables from this row on; of a row that could not be read, the column `reason` says why.
        target, key: of the file.

    Returns:
        How many rows could not be read.
    """
    unreadable = 0
    with tempfile.TemporaryFile() as file:  # without a name, so that it goes with the process however that dies
        with pq.ParquetWriter(file, parts.schema) as writer:
            for rows in parts.read():
                writer.write_table(rows)
                unreadable += len(rows) - rows["reason"].null_count
            for rows in fresh(parts.rows):
                writer.write_table(rows)
                parts.add(rows)
                unreadable += len(rows) - rows["reason"].null_count
        file.flush()
        target.put_file(key, Path(f"/dev/fd/{file.fileno()}"))
    parts.clear()
    return unreadable


def digest_of(about: Sequence[Any], table: pa.Table) -> str:
    """Of the rows of a table, as they are read, and of JSON values that decide what is made of them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    columns = [name for name in COLUMNS if name in table.column_names]
    for batch in table.select(columns).to_batches():
        digest.update(json.dumps(batch.to_pydict(), default=bytes.hex).encode())
    return digest.hexdigest()[:16]


def place_of(output: str | None, store: Store, default: str) -> tuple[Store, str]:
    """(folder, name) of a file that is to be written: `output`, else `default` in the store."""
    if output is None:
        return store, default
    folder, _, name = output.rpartition("/")
    return open_store(folder or "."), name


def name_of(source: str) -> str:
    """A short name for the images at an address."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]
