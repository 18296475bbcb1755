"""Writing an index's images again as tar shards: small baseline JPEGs, many to a file, in a fixed random order.

FOLDER/SPLIT-00000.tar hold the samples. FOLDER/manifest.parquet, written last, lists them as a source for raycnn: split
and alias are the original's, so rows stay in their split and keep their random views.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycnn.config import ShardsConfig
from raycnn.data.dataset import quiet
from raycnn.data.decode import BadImage, Limits
from raycnn.data.manifest import SPLITS, Index, row_names
from raycnn.data.packing import ROOM, Archive, packed
from raycnn.data.reader import open_row, reason_of
from raycnn.data.rowgroups import is_group
from raycnn.errors import (
    DataError,
    ObjectDamaged,
    ObjectNotFound,
    PreconditionFailed,
    RaycnnError,
    decode_error,
    encode_error,
)
from raycnn.storage import Store, open_store

MANIFEST: Final = "manifest.parquet"
_PLAN: Final = "shards.json"
_PARTS: Final = "parts"
_SAMPLED: Final = 64
_THREADS: Final = 8


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of one index into one folder.

    Args:
        source: uri that the rows' keys are relative to.
        folder: uri of the shards.
        limits: of the index.
        settings: how images are packed.
        classes: by label; integers where integers were what sorted them.
    """

    source: str
    folder: str
    limits: Limits
    settings: ShardsConfig
    classes: tuple[str, ...] | tuple[int, ...]

    def write(self, name: str, rows: pa.Table) -> pa.Table:
        """Write one shard, then its part of the manifest; what lies there already is not written again.

        Returns:
            key, offset, length, alias, split, group, label, reason; rows with a reason could not be packed.

        Raises:
            StorageError: the store failed.
        """
        store, part = open_store(self.folder), f"{_PARTS}/{name}.parquet"
        try:
            return pq.read_table(pa.BufferReader(store.get(part)))
        except ObjectNotFound:
            pass
        archive, entries = Archive(), []
        for number, (row, data) in enumerate(self.images(rows)):
            entry = self._entry(row) | {"key": f"{name}.tar"}
            if isinstance(data, str):
                entries.append(entry | {"reason": data})
                continue
            described = {field: entry[field] for field in ("label", "alias", "split", "group")}
            label = row["label"] if row["label"] >= 0 else None
            offset = archive.add(f"{name.replace('-', '')}{number:07}", data, label, described)
            entries.append(entry | {"offset": offset, "length": len(data)})
        store.put(f"{name}.tar", archive.close())
        table = pa.Table.from_pylist(entries, _schema(rows, self.classes))
        store.put(part, _parquet(table))
        return table

    def images(self, rows: pa.Table) -> Iterator[tuple[dict[str, Any], bytes | str]]:
        """Each row and the bytes it goes into a shard with, or why there are none, in their order."""

        def read(row: dict[str, Any]) -> bytes | str:
            try:
                return packed(*open_row(self.source, row, self.limits), self.settings, self.limits.max_pixels)
            except (ObjectNotFound, ObjectDamaged, BadImage) as error:
                return reason_of(error)

        listed = rows.to_pylist()
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from zip(listed, pool.map(read, listed), strict=True)

    def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        label: Any = row["value"]
        if label is None:
            names = [self.classes[place] for place in row["labels"]]
            label = names[0] if row["label"] >= 0 else names
        return {"alias": row["name"], "split": row["split"], "group": row["group"], "label": label}


def write_shards(
    index: Index, storage: Store, settings: ShardsConfig, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write all rows of an index as shards. Needs an initialised Ray; goes on where an earlier start was cut off.

    Args:
        index: whole.
        storage: the root of run.storage.
        settings: the section `shards`.
        progress: called with (shards done, shards in all).

    Returns:
        {source, shards, rows, bytes, skipped: [{key, reason}]}

    Raises:
        DataError: shards of something else lie in the folder.
        StorageError: the store failed.
    """
    identity = hashlib.sha256(f"{index.hash} {settings.model_dump_json(exclude={'folder'})}".encode()).hexdigest()[:16]
    folder = settings.folder or f"{storage.uri}/shards/{identity}"
    store = open_store(folder)
    as_text = list(index.classes) == sorted(index.classes)
    classes = index.classes if as_text else tuple(map(int, index.classes))
    writer = ShardWriter(index.source, folder, index.limits, settings, classes)
    rows = index.manifest.append_column("name", pa.array(row_names(index.manifest), pa.string()))
    plan = _agreed(store, {"identity": identity, "shard_rows": _shard_rows(writer, rows)})
    shards = _cut(rows, plan["shard_rows"])
    tables = []
    for table in _through_ray(writer, shards):
        tables.append(table)
        progress(len(tables), len(shards))
    found = pa.concat_tables(tables)
    good = found.filter(found["reason"].is_null())
    store.put(MANIFEST, _parquet(good.drop_columns("reason")))
    bad = found.filter(found["reason"].is_valid()).select(["alias", "reason"]).rename_columns(["key", "reason"])
    return {
        "source": f"{folder}/{MANIFEST}",
        "shards": len(shards),
        "rows": len(good),
        "bytes": int(np.sum(good["length"].to_numpy())),
        "skipped": bad.to_pylist(),
    }


def _shard_rows(writer: ShardWriter, rows: pa.Table) -> int:
    """Rows of a shard, by the bytes of some."""
    some = _shuffled(rows).slice(0, _SAMPLED)
    sizes = [len(data) + ROOM for _, data in writer.images(some) if isinstance(data, bytes)]
    return max(1, round(writer.settings.shard_bytes / np.mean(sizes))) if sizes else len(rows)


def _agreed(store: Store, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan of whoever began in this folder.

    Raises:
        DataError: that was another set of images or other settings.
    """
    try:
        store.put(_PLAN, json.dumps(plan).encode(), create_only=True)
        return plan
    except PreconditionFailed:
        there: dict[str, Any] = json.loads(store.get(_PLAN))
    if there.get("identity") != plan["identity"]:
        fix = "give shards.folder another one, or none"
        raise DataError("shards of other images or settings lie there", where=store.uri, fix=fix)
    return there


def _cut(rows: pa.Table, shard_rows: int) -> list[tuple[str, pa.Table]]:
    """(name, rows) of each shard."""
    shards = []
    for split in SPLITS:
        of_split = _shuffled(rows.filter(pc.equal(rows["split"], split)))
        for number, start in enumerate(range(0, len(of_split), shard_rows)):
            shards.append((f"{split}-{number:05}", of_split.slice(start, shard_rows)))
    return shards


def _shuffled(rows: pa.Table) -> pa.Table:
    """By their hash: at random, and always the same; row groups that have to be unpacked each in one piece."""
    first: dict[str, int] = {}
    for key, number in zip(rows["key"].to_pylist(), rows["key_hash"].to_pylist(), strict=True):
        if is_group(key):
            first[key] = min(number, first.get(key, number))
    piece = pa.array([first.get(key, 0) for key in rows["key"].to_pylist()], pa.uint64())
    by_piece = rows.append_column("piece", piece).sort_by([("piece", "ascending"), ("key_hash", "ascending")])
    return by_piece.drop_columns("piece")


def _through_ray(writer: ShardWriter, shards: list[tuple[str, pa.Table]]) -> Iterator[pa.Table]:
    import ray

    def write(block: pa.Table) -> pa.Table:
        try:
            found = writer.write(block["shard"][0].as_py(), block)
        except RaycnnError as error:  # travels as data: Ray keeps only the text of what a task raises
            return pa.table({"error": [encode_error(error)]})
        return found.append_column("error", pa.nulls(len(found), pa.string()))

    blocks = [rows.append_column("shard", pa.array([name] * len(rows))).combine_chunks() for name, rows in shards]
    dataset = ray.data.from_arrow(blocks).map_batches(write, batch_size=None, batch_format="pyarrow")
    quiet(dataset.context)
    tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in tables:
        if failed := table["error"].drop_null().to_pylist():
            raise decode_error(failed[0])
        yield table.drop_columns("error")


def _schema(rows: pa.Table, classes: tuple[str, ...] | tuple[int, ...]) -> pa.Schema:
    label: Any = pa.float64()
    if rows["value"].null_count:
        label = pa.int64() if classes and isinstance(classes[0], int) else pa.string()
        label = label if (rows["label"].to_numpy() >= 0).all() else pa.list_(label)
    texts = [(name, pa.string()) for name in ("key", "alias", "split", "group", "reason")]
    return pa.schema([*texts, ("offset", pa.int64()), ("length", pa.int64()), ("label", label)])


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
