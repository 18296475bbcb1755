"""What there is to read: class folders, tar shards, or a CSV or Parquet manifest, as one table of candidate rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.data.manifest import Kind, key_hashes
from raycnn.data.tables import SPLIT_NAMES, Targets, absolute_keys, read_table, targets
from raycnn.data.webdataset import read_samples, shards_of
from raycnn.errors import DataError
from raycnn.storage import Entry, open_images

_LISTING: Final = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
_CANDIDATE: Final = ("key", "offset", "length", "size", "etag", "reason", "alias")
_SYSTEM_NAMES: Final = {"Thumbs.db", "desktop.ini", "__MACOSX"}
_MAX_KEY_BYTES: Final = 1024

UNCOUNTED: Final = ("hidden file", "not in a class folder")
"""Reasons that say "no image of the data set" rather than "a bad one"."""


@dataclass(frozen=True)
class Source:
    """The candidates of a source.

    Args:
        root: uri that the keys are relative to.
        kind: what a target is.
        classes: names by label, sorted; numbers by value.
        rows: key, offset, length, size, etag, alias, name (the class or classes by name), label, labels, value, split
            (null: not said), group and reason (why it cannot be a row; null: it may).
    """

    root: str
    kind: Kind
    classes: tuple[str, ...]
    rows: pa.Table


def read_source(uri: str) -> Source:
    """List a source: a manifest if its name ends in .csv or .parquet, else a tree of class folders or of tar shards.

    Raises:
        DataError: nothing there, a manifest that cannot be used, or folders that could mean two things.
        StorageError: the store failed.
    """
    return _from_manifest(uri) if _is_manifest(uri) else _from_tree(uri)


def list_images(uri: str) -> tuple[str, pa.Table]:
    """Images without targets: all below a folder, or the `key` column of a manifest.

    Returns:
        the uri that keys are relative to, and a table of key, offset, length, alias, sha256 (null: not known) and
        key_hash.
        System files are left out, and so are unsafe keys.
    """
    if _is_manifest(uri):
        root, rows = _manifest_rows(uri, read_table(uri, required=("key",)))
    else:
        reader = open_images(uri)
        root, rows = reader.uri, _whole_objects(_listing(reader.list()))
    usable = pc.is_in(rows["reason"], value_set=pa.array([None, "missing"], pa.string()))
    rows = rows.filter(usable)
    hashes = pa.array(key_hashes(rows))
    rows = rows.select(["key", "offset", "length", "alias"]).append_column("sha256", pa.nulls(len(rows), pa.binary(32)))
    return root, rows.append_column("key_hash", hashes)


def class_names(uri: str) -> set[str]:
    """The names of a source's classes as they are now, without listing its images; empty for numbers, or no source."""
    if _is_manifest(uri):
        return set(targets(_labels(uri), text_lists=uri.lower().endswith(".csv")).classes)
    reader = open_images(uri)

    def named(folder: str) -> set[str]:
        below = f"{folder}/" if folder else ""
        names = (name for name in reader.folders(folder) if _refusal(name) is None)
        return {name for name in names if next(reader.list(f"{below}{name}/"), None)}  # some stores show empty ones

    tops = named("")
    return set().union(*map(named, tops)) if _are_splits(sorted(tops), reader.uri) else tops


def _labels(uri: str) -> pa.Array:
    return read_table(uri, required=("key", "label"))["label"].combine_chunks()


def is_safe(key: str) -> bool:
    """Whether a key is a plain relative path that stays below its root."""
    unusable = "\\" in key or "\0" in key or len(key.encode()) > _MAX_KEY_BYTES  # "://" has an empty part
    return not unusable and not any(part in ("", ".", "..") for part in key.split("/"))


def _is_manifest(uri: str) -> bool:
    return uri.lower().endswith((".csv", ".parquet"))


def _from_tree(uri: str) -> Source:
    reader = open_images(uri)
    rows = _whole_objects(_listing(reader.list()))
    if not len(rows):
        raise DataError("no objects", where=f"data.source: {reader.uri}", fix="check the address")
    if (shards := shards_of(rows)) is not None:
        samples = read_samples(reader, shards)
        return _source(reader.uri, samples.rows, targets(samples.labels), samples.split, pa.nulls(len(samples.rows)))
    usable = pc.is_null(rows["reason"].combine_chunks())
    top, rest = _first_part(rows["key"])
    tops = pc.unique(top.filter(usable)).drop_null().to_pylist()
    split = pa.nulls(len(rows), pa.string())
    if _are_splits(tops, reader.uri):
        split = pa.array(_split_names(pc.if_else(usable, top, pa.scalar(None, pa.string()))), pa.string())
        top, _ = _first_part(rest)
    outside = pc.and_(usable, pc.is_null(top))
    rows = _with(rows, "reason", pc.if_else(outside, "not in a class folder", rows["reason"].combine_chunks()))
    name = pc.if_else(pc.is_null(rows["reason"]).combine_chunks(), top, pa.scalar(None, pa.string()))
    if not pc.any(pc.is_valid(name)).as_py():
        fix = "put the images of each class into a folder with its name, or give a .csv or .parquet manifest"
        raise DataError("no class folders with objects", where=f"data.source: {reader.uri}", fix=fix)
    return _source(reader.uri, rows, targets(name), split, pa.nulls(len(rows), pa.string()))


def _from_manifest(uri: str) -> Source:
    table = read_table(uri, required=("key", "label"))
    root, rows = _manifest_rows(uri, table)
    target = targets(table["label"].combine_chunks(), text_lists=uri.lower().endswith(".csv"))
    unlabelled = pc.and_(pc.is_null(rows["reason"]).combine_chunks(), target.missing)
    rows = _with(rows, "reason", pc.if_else(unlabelled, "no label", rows["reason"].combine_chunks()))
    return _source(root, rows, target, table["split"].combine_chunks(), table["group"].combine_chunks())


def _source(root: str, rows: pa.Table, target: Targets, split: pa.Array, group: pa.Array) -> Source:
    for name in ("name", "label", "labels", "value"):
        rows = rows.append_column(name, getattr(target, name))
    rows = rows.append_column("split", split).append_column("group", group)
    return Source(root, target.kind, target.classes, rows.combine_chunks())


def _manifest_rows(uri: str, table: pa.Table) -> tuple[str, pa.Table]:
    """The rows of a manifest joined with the sizes and tags of their objects."""
    folder = uri.rpartition("/")[0] or "."
    folder, keys = absolute_keys(folder, table["key"].combine_chunks())
    reader = open_images(folder)
    reasons = pa.array([None if key and is_safe(key) else "unsafe key" for key in keys.to_pylist()], pa.string())
    safe = keys.filter(pc.is_null(reasons))
    ends = pc.min_max(safe)
    prefix = os.path.commonprefix([ends["min"].as_py() or "", ends["max"].as_py() or ""])  # noqa: RUF071
    objects = _listing(reader.list(prefix) if len(safe) else [], wanted=safe)
    found = objects.take(pc.index_in(keys, value_set=objects["key"].combine_chunks()))
    size = found["size"].combine_chunks()
    offset = pc.fill_null(table["offset"].combine_chunks(), 0)
    length = pc.coalesce(table["length"].combine_chunks(), pc.subtract(size, offset))
    within = pc.and_(pc.greater_equal(offset, 0), pc.less_equal(offset, size))
    inside = pc.and_(within, pc.and_(pc.greater_equal(length, 0), pc.less_equal(length, pc.subtract(size, offset))))
    checks = [
        (pc.is_null(size), "missing"),
        (_repeated(keys, offset), "listed twice"),
        (pc.invert(inside), "outside its object"),
    ]
    for wrong, reason in checks:
        wrong = pc.and_(pc.is_null(reasons), pc.fill_null(wrong, False))
        reasons = pc.if_else(wrong, reason, reasons)
    columns = [keys, offset, pc.fill_null(length, 0), size, found["etag"], reasons, table["alias"]]
    return reader.uri, pa.table(columns, names=_CANDIDATE)


def _listing(entries: Iterable[Entry], wanted: pa.Array | None = None) -> pa.Table:
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


def _whole_objects(listing: pa.Table) -> pa.Table:
    reasons: list[Any] = []
    for batch in listing.to_batches():
        reasons += [_refusal(key) for key in batch["key"].to_pylist()]
    zeros = pa.array(np.zeros(len(listing), np.int64))
    no_alias = pa.nulls(len(listing), pa.string())
    reason = pa.array(reasons, pa.string())
    columns = [listing["key"], zeros, listing["size"], listing["size"], listing["etag"], reason, no_alias]
    return pa.table(columns, names=_CANDIDATE).combine_chunks()


def _refusal(key: str) -> str | None:
    if not is_safe(key):
        return "unsafe key"
    hidden = any(part.startswith(".") or part in _SYSTEM_NAMES for part in key.split("/"))
    return "hidden file" if hidden else None


def _first_part(paths: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """What stands before and behind the first "/"; null where there is none."""
    if isinstance(paths, pa.ChunkedArray):
        paths = paths.combine_chunks()
    parts = pc.extract_regex(paths, r"(?s)^(?P<first>[^/]+)/(?P<rest>.+)$")
    first, rest = pc.struct_field(parts, "first"), pc.struct_field(parts, "rest")
    return first, rest


def _are_splits(tops: list[str], uri: str) -> bool:
    splits = {SPLIT_NAMES[name.lower()] for name in tops if name.lower() in SPLIT_NAMES}
    others = sorted(name for name in tops if name.lower() not in SPLIT_NAMES)
    if splits and others and "train" in splits and len(splits) > 1:
        raise DataError(
            f"folders of splits beside others ({', '.join(others[:3])})",
            where=f"data.source: {uri}",
            fix="keep either train/ val/ test/ or class folders there, nothing else",
        )
    return bool(splits) and not others


def _split_names(folders: pa.Array) -> list[str | None]:
    return [None if name is None else SPLIT_NAMES[name.lower()] for name in folders.to_pylist()]


def _repeated(keys: pa.Array, offsets: pa.Array) -> pa.Array:
    """True for every row that names the same bytes as an earlier one."""
    names = pc.binary_join_element_wise(keys, pc.cast(offsets, pa.string()), "\0")
    codes = names.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    repeated = np.ones(len(codes), bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    return pa.array(repeated)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)
