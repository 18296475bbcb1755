"""The manifest: one row per image, pinned by a hash over its content; how it is stored and read back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycnn.data.decode import Limits
from raycnn.errors import CheckpointError, DataError, ObjectNotFound
from raycnn.storage import Store
from raycnn.storage.base import parse_json

SPLITS: Final = ("train", "val", "test")

SCHEMA: Final = pa.schema(
    [
        ("key", pa.string()),  # relative to the index's source
        ("offset", pa.int64()),  # the image is the object's bytes [offset, offset + length)
        ("length", pa.int64()),
        ("label", pa.int32()),  # index into classes; -1: the target is a list or a number
        ("labels", pa.list_(pa.int32())),  # all classes of the row, sorted
        ("value", pa.float64()),  # target that is a number; null: it is a class
        ("split", pa.string()),
        ("group", pa.string()),  # rows that belong together; null: the row alone
        ("size", pa.int64()),  # of the whole object
        ("etag", pa.string()),
        ("sha256", pa.binary(32)),  # of the row's bytes
        ("key_hash", pa.uint64()),  # blake2b-8 of the row's name, see `row_names`
        ("width", pa.int32()),  # upright, as decoded
        ("height", pa.int32()),
        ("format", pa.string()),
        ("alias", pa.string()),  # what the row is called; null: its key and offset
    ]
)
"""Rows are sorted by (split, label, alias or else key, offset), see `sort_rows`."""

QUARANTINE: Final = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("reason", pa.string()),
        ("label", pa.string()),  # its class by name, null where it has none
        ("split", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("sha256", pa.binary(32)),  # of its bytes, null where they were not read
        ("alias", pa.string()),
    ]
)

_FORMAT: Final = 1
_HASHED: Final = ("key", "offset", "length", "label", "labels", "value", "split", "group", "sha256")
_FILES: Final = ("manifest.parquet", "quarantine.parquet")

Kind = Literal["class", "classes", "number"]
"""What the target of a row is: one class, a list of classes, or a number."""

TARGET_COLUMNS: Final = {"class": "label", "classes": "labels", "number": "value"}
"""Column of the manifest by kind of target."""


@dataclass(frozen=True)
class Index:
    """A pinned set of rows.

    Args:
        hash: hex sha256 over rows, classes and splits; equal content has an equal hash, wherever it lies.
        source: uri that the keys are relative to.
        path: uri of the folder it is stored in.
        kind: what a target is.
        classes: names by label.
        manifest: SCHEMA, or the columns asked for.
        quarantine: QUARANTINE; every object of the source is either here or in the manifest.
        duplicates: pairs of keys with the same bytes, all in one split.
        conflicts: those of the pairs whose targets differ.
        limits: what was refused unread.
    """

    hash: str
    source: str
    path: str
    kind: Kind
    classes: tuple[str, ...]
    manifest: pa.Table
    quarantine: pa.Table
    duplicates: list[tuple[str, str]]
    conflicts: list[tuple[str, str]]
    limits: Limits

    def rows(self, split: str) -> pa.Table:
        """The manifest's rows of one split, in its order."""
        return self.manifest.filter(pc.equal(self.manifest["split"], split))


def row_names(rows: pa.Table) -> Iterator[str]:
    """What identifies each row: its alias, else its key, and its offset where that is not 0."""
    for column in zip(rows["key"], rows["offset"], rows["alias"], strict=True):
        key, offset, alias = (value.as_py() for value in column)
        yield alias if alias is not None else f"{key}\0{offset}" if offset else key


def shown_names(rows: pa.Table) -> pa.ChunkedArray:
    """The rows by the name that people know them by: the alias, else the key."""
    return pc.coalesce(rows["alias"], rows["key"])


def sort_rows(manifest: pa.Table) -> pa.Table:
    """In the order of every manifest; it does not depend on where the bytes of a row with an alias lie."""
    by_name = manifest.append_column("name", shown_names(manifest))
    by_name = by_name.sort_by([(name, "ascending") for name in ("split", "label", "name", "offset")])
    return by_name.drop_columns("name").combine_chunks()


def key_hashes(rows: pa.Table) -> npt.NDArray[np.uint64]:
    """blake2b-8 of the rows' names, uint64[n]."""
    hashes = np.empty(len(rows), np.uint64)
    for place, name in enumerate(row_names(rows)):
        hashes[place] = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return hashes


def content_hash(manifest: pa.Table, kind: Kind, classes: Sequence[str]) -> str:
    """Hex sha256 over what the rows are and where they go; not over tags, sizes or the source's address."""
    digest = hashlib.sha256(json.dumps([_FORMAT, kind, list(classes)]).encode())
    aliased = manifest["alias"].null_count < len(manifest)
    content = manifest.select([*_HASHED, "alias"] if aliased else _HASHED)
    for start in range(0, len(content), 65536):
        columns = content.slice(start, 65536).to_pydict()
        digest.update(json.dumps(columns, default=bytes.hex).encode())
    return digest.hexdigest()


def write_index(index: Index, store: Store) -> None:
    """Store an index under index/HASH/ of `store`; index.json comes last and vouches for the rest."""
    folder = store.child(f"index/{index.hash}")
    files = {}
    for name, table in zip(_FILES, (index.manifest, index.quarantine), strict=True):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        folder.put(name, data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    facts = {
        "format": _FORMAT,
        "hash": index.hash,
        "source": index.source,
        "kind": index.kind,
        "classes": index.classes,
        "limits": vars(index.limits),
        "rows": len(index.manifest),
        "quarantined": len(index.quarantine),
        "duplicates": index.duplicates,
        "conflicts": index.conflicts,
        "created": time.time(),
        "files": files,
    }
    folder.put("index.json", json.dumps(facts, indent=1).encode())


def read_facts(store: Store, hash: str) -> dict[str, Any]:
    """The index.json of a stored index.

    Raises:
        DataError: there is none, or it is damaged.
        CheckpointError: a newer raycnn wrote it.
    """
    where = f"{store.uri}/index/{hash}"
    try:
        facts: dict[str, Any] = parse_json(store.get(f"index/{hash}/index.json"))
        if not isinstance(version := facts["format"], int) or (version <= _FORMAT and not _well_formed(facts)):
            raise ValueError("not the facts of an index")
    except ObjectNotFound:
        raise DataError("no such index", where=where, fix="run `raycnn index` again") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _damaged(where) from None
    if version > _FORMAT:
        what = f"an index of format {version}, and this raycnn reads formats up to {_FORMAT}"
        raise CheckpointError(what, where=where, fix="use a newer raycnn")
    return facts


def read_index(store: Store, hash: str, columns: Sequence[str] | None = None) -> Index:
    """A stored index, every file checked against its digest.

    Args:
        store: the root of run.storage.
        hash: which.
        columns: of the manifest, where "target" is the one that says what a row's target is; all by default.

    Raises:
        DataError: there is none, or it is damaged.
        CheckpointError: a newer raycnn wrote it.
    """
    path = f"{store.uri}/index/{hash}"
    for _ in range(2):  # a second time in case it was being written again just now
        facts = read_facts(store, hash)
        data = {name: _file(store, f"index/{hash}/{name}", facts["files"][name]) for name in _FILES}
        if None not in data.values():
            break
    else:
        raise _damaged(path)
    named = {"target": TARGET_COLUMNS[facts["kind"]]}
    wanted = None if columns is None else list(dict.fromkeys(named.get(name, name) for name in columns))
    manifest, quarantine = (pa.BufferReader(data[name]) for name in _FILES)
    return Index(
        hash=hash,
        source=facts["source"],
        path=path,
        kind=facts["kind"],
        classes=tuple(facts["classes"]),
        manifest=_columns(manifest, SCHEMA, wanted),
        quarantine=_columns(quarantine, QUARANTINE),
        duplicates=[(first, second) for first, second in facts["duplicates"]],
        conflicts=[(first, second) for first, second in facts["conflicts"]],
        limits=Limits(**facts["limits"]),
    )


def summary(index: Index) -> dict[str, Any]:
    """What `raycnn index` reports: {rows, classes, splits, quarantined, quarantined_by, duplicates, manifest}.

    quarantined_by counts by split and class: {split: {class: n}}, "-" for those that have none.
    """
    per_label = _counts(pc.list_flatten(index.manifest["labels"]))
    per_split = _counts(index.manifest["split"])
    by: dict[str, dict[str, int]] = {}
    for split, label in zip(*(index.quarantine[name].to_pylist() for name in ("split", "label")), strict=True):
        classes = by.setdefault(split or "-", {})
        classes[label or "-"] = classes.get(label or "-", 0) + 1
    return {
        "rows": len(index.manifest),
        "classes": {name: per_label.get(label, 0) for label, name in enumerate(index.classes)},
        "splits": {name: per_split.get(name, 0) for name in SPLITS},
        "quarantined": [
            {"key": name, "reason": reason}
            for name, reason in zip(
                shown_names(index.quarantine).to_pylist(), index.quarantine["reason"].to_pylist(), strict=True
            )
        ],
        "quarantined_by": by,
        "duplicates": [list(pair) for pair in index.duplicates],
        "manifest": f"{index.path}/{_FILES[0]}",
    }


def _columns(file: pa.BufferReader, schema: pa.Schema, wanted: Sequence[str] | None = None) -> pa.Table:
    """Columns of a stored table, all by default; null where it was written before the schema had them."""
    wanted = schema.names if wanted is None else list(wanted)
    with pq.ParquetFile(file) as stored:
        there = set(stored.schema_arrow.names)
        table = stored.read([name for name in wanted if name in there])
    for name in wanted:
        if name not in there:
            table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
    return table.select(wanted)


def _counts(values: pa.ChunkedArray) -> dict[Any, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()}


def _file(store: Store, key: str, expected: dict[str, Any]) -> bytes | None:
    try:
        data = store.get(key)
    except ObjectNotFound:
        return None
    return data if hashlib.sha256(data).hexdigest() == expected["sha256"] else None


def _well_formed(facts: dict[str, Any]) -> bool:
    texts = [facts["source"], facts["kind"], *facts["classes"], *(facts["files"][name]["sha256"] for name in _FILES)]
    pairs = [*facts["duplicates"], *facts["conflicts"]]
    return (
        all(isinstance(text, str) for text in texts)
        and all(len(pair) == 2 for pair in pairs)
        and isinstance(facts["created"], float | int)
        and facts["limits"].keys() == Limits.__annotations__.keys()
    )


def _damaged(where: str) -> DataError:
    return DataError("the index is damaged", where=where, fix="delete this folder and run `raycnn index` again")
