"""Tables of the node's cache in object storage: pieces named by their content, and an index written last."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from typing import Final

import numpy as np
import numpy.typing as npt

from raycnn.errors import ObjectNotFound, PreconditionFailed
from raycnn.storage.base import Store
from raycnn.storage.table import Table, as_bytes

_INDEX: Final = "index"
_PIECE_BYTES: Final = 32 << 20

_log = logging.getLogger(__name__)


def push(store: Store, table: Table) -> None:
    """Bring to the store what it does not have yet of the table's rows; StorageError if it cannot."""
    index, etag = _read_index(store)
    there = {key for keys in index.values() for key in as_bytes(keys)}
    lacking = {key: row for row, key in enumerate(as_bytes(table.keys)) if key not in there}
    rows = np.array([*lacking.values()], np.int64)
    rows = rows[table.has(rows)]
    pieces = {}
    for some in np.split(rows, range(0, len(rows), max(1, _PIECE_BYTES // table.bytes_per_row))[1:]):
        values, valid = table.get(some)
        keys, data = table.keys[some[valid]], values[valid].tobytes()
        if data:
            piece = _name(keys, data)
            store.put(f"{piece}.rows", data)  # over what may be there: that is the same, or damaged
            pieces[piece] = keys
    if pieces:
        try:
            _write_index(store, index | pieces, etag)
        except PreconditionFailed:  # another node pushed meanwhile
            push(store, table)


def fetch(store: Store, table: Table) -> None:
    """Put into the table what it lacks and the store has intact; StorageError if it cannot be read."""
    index, etag = _read_index(store)
    there = table.has(np.arange(len(table.keys)))
    absent = {key: row for row, key in enumerate(as_bytes(table.keys)) if not there[row]}
    intact = dict(index)
    for piece, keys in index.items():
        found = [(place, absent[key]) for place, key in enumerate(as_bytes(keys)) if key in absent]
        if found:
            data = _read(store, f"{piece}.rows")
            if _name(keys, data) == piece:
                places, rows = np.array(found).T
                table.put(rows, np.frombuffer(data, table.dtype).reshape(len(keys), *table.shape)[places])
            else:
                del intact[piece]
    if len(intact) < len(index):
        _log.warning("cache: %d damaged pieces in %s are computed anew", len(index) - len(intact), store.uri)
        with contextlib.suppress(PreconditionFailed):
            _write_index(store, intact, etag)  # so that the next push brings these rows again


def _name(keys: npt.NDArray[np.uint8], data: bytes) -> str:
    digest = hashlib.sha256(keys.tobytes())
    digest.update(data)
    return digest.hexdigest()


def _read(store: Store, key: str) -> bytes:
    try:
        return store.get(key)
    except ObjectNotFound:
        return b""


def _read_index(store: Store) -> tuple[dict[str, npt.NDArray[np.uint8]], str | None]:
    """The keys of each piece, and the etag to replace the index by."""
    try:
        etag = store.stat(_INDEX).etag
    except ObjectNotFound:
        return {}, None
    data = _read(store, _INDEX)
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        _log.warning("cache: the index of %s is damaged and made anew", store.uri)
        return {}, etag
    with np.load(io.BytesIO(data[32:]), allow_pickle=False) as index:
        return dict(index), etag


def _write_index(store: Store, index: dict[str, npt.NDArray[np.uint8]], etag: str | None) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **index)
    data = buffer.getvalue()
    store.put(_INDEX, hashlib.sha256(data).digest() + data, create_only=etag is None, if_etag=etag)
