"""Parquet manifests, unpacked within bounds: a file of a few KB can claim a billion rows, or repeat a long text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_ROOM: Final = 64 << 20
_GROWTH: Final = 50  # keys differ from row to row, so no honest manifest shrinks by more
_BATCH: Final = 8192
_PER_VALUE: Final = 4


def read_parquet(data: bytes, columns: Sequence[str]) -> pa.Table:
    """Those of the columns that the file has; its rows are read batch by batch.

    Raises:
        pa.ArrowException, OSError, UnicodeDecodeError: not a Parquet file, or more than 64 MiB and 50 times the file's
            size when unpacked.
    """
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        schema, facts = file.schema_arrow, file.metadata
        wanted = [name for name in columns if name in schema.names]
    room = max(_ROOM, _GROWTH * len(data))
    chunks = [
        facts.row_group(group).column(place)
        for group in range(facts.num_row_groups)
        for place in range(facts.num_columns)
    ]
    used = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in wanted]
    claimed = sum(max(chunk.total_uncompressed_size, chunk.num_values * _PER_VALUE) for chunk in used)
    if claimed > room or facts.num_rows * _PER_VALUE > room:
        raise pa.ArrowInvalid(f"{claimed / 1e6:.0f} MB when unpacked, and {len(data) / 1e6:.1f} MB packed")
    texts = [chunk.path_in_schema for chunk in used if chunk.physical_type == "BYTE_ARRAY"]
    batches = []
    with pq.ParquetFile(pa.BufferReader(data), read_dictionary=sorted(set(texts))) as file:  # a repeated text once
        for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
            room -= sum(_unpacked_bytes(column) for column in batch.columns)
            if room < 0:
                raise pa.ArrowInvalid(f"more than {_GROWTH} times its size when unpacked")
            batches.append(_plain(batch))
    table = pa.Table.from_batches(batches) if batches else _plain(schema.empty_table().select(wanted))
    table.validate(full=True)  # text that is none would fail later, row by row
    return table


def _unpacked_bytes(column: pa.Array) -> int:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return int(column.offsets.nbytes) + _unpacked_bytes(column.flatten())
    if not pa.types.is_dictionary(column.type) or not _is_bytes(column.type.value_type):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary).cast(pa.int64())
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0) + len(column) * _PER_VALUE


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _plain(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch | pa.Table:
    """Without dictionaries."""
    return rows.cast(pa.schema([field.with_type(_plain_type(field.type)) for field in rows.schema]))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind
