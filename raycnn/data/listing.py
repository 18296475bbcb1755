"""Objects of a store as a table, and which of them cannot be images by their names."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.storage import Entry

CANDIDATE: Final = ("key", "offset", "length", "size", "etag", "reason", "alias")
"""Columns that tell where a candidate for a row lies, and why it cannot be one."""

_LISTING: Final = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
_SYSTEM_NAMES: Final = {"Thumbs.db", "desktop.ini", "__MACOSX"}
_MAX_KEY_BYTES: Final = 1024


def list_objects(entries: Iterable[Entry], wanted: pa.Array | None = None) -> pa.Table:
    """Objects as a table, piece by piece, so that no Python object per image stays; those `wanted`, or all."""
    batches, iterator = [], iter(entries)
    while part := list(islice(iterator, 8192)):
        # names of files that are no text get a backslash, which makes them unsafe keys below
        keys = [entry.key.encode(errors="backslashreplace").decode() for entry in part]
        columns = [keys, [entry.size for entry in part], [entry.etag for entry in part]]
        arrays = [pa.array(c, t) for c, t in zip(columns, _LISTING.types, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=_LISTING)
        batches.append(batch if wanted is None else batch.filter(pc.is_in(batch["key"], value_set=wanted)))
    return pa.Table.from_batches(batches, _LISTING)


def whole_objects(listing: pa.Table) -> pa.Table:
    """CANDIDATE of a listing, each object an image; those whose names forbid it with a reason."""
    reasons: list[Any] = []
    for batch in listing.to_batches():
        reasons += [refusal(key) for key in batch["key"].to_pylist()]
    zeros = pa.array(np.zeros(len(listing), np.int64))
    no_alias = pa.nulls(len(listing), pa.string())
    reason = pa.array(reasons, pa.string())
    columns = [listing["key"], zeros, listing["size"], listing["size"], listing["etag"], reason, no_alias]
    return pa.table(columns, names=CANDIDATE).combine_chunks()


def refusal(key: str) -> str | None:
    """Why what has this key is no image, if its name tells."""
    if not is_safe(key):
        return "unsafe key"
    hidden = any(part.startswith(".") or part in _SYSTEM_NAMES for part in key.split("/"))
    return "hidden file" if hidden else None


def is_safe(key: str) -> bool:
    """Whether a key is a plain relative path that stays below its root."""
    unusable = "\\" in key or "\0" in key or len(key.encode()) > _MAX_KEY_BYTES  # "://" has an empty part
    return not unusable and not any(part in ("", ".", "..") for part in key.split("/"))
