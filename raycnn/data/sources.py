"""What there is to read as one table: class folders, tar shards, Parquet with images, a CSV or Parquet manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.data.embedded import image_files, read_embedded, read_labels
from raycnn.data.listing import CANDIDATE, is_safe, list_objects, refusal, whole_objects
from raycnn.data.manifest import Kind, key_hashes
from raycnn.data.tables import SPLIT_NAMES, Targets, absolute_keys, read_table, targets
from raycnn.data.webdataset import Samples, files_of, read_samples
from raycnn.errors import DataError
from raycnn.storage import open_images

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


def read_source(uri: str, task: str = "auto") -> Source:
    """List a source: a .parquet file of images; a manifest, .csv or .parquet; a tree, tar shards or Parquet files.

    Args:
        uri: of the folder or the manifest.
        task: data.task, which says what the labels are where that could be either of two things.

    Raises:
        DataError: nothing there, a manifest that cannot be used, or folders that could mean two things.
        StorageError: the store failed.
    """
    if found := image_files(uri):
        return _from_samples(found[0].uri, read_embedded(*found), task)
    return _from_manifest(uri, task) if _is_manifest(uri) else _from_tree(uri, task)


def list_images(uri: str) -> tuple[str, pa.Table]:
    """Images without targets: all below a folder, in Parquet files, or in the `key` column of a manifest.

    Returns:
        the uri that keys are relative to, and a table of key, offset, length, alias, sha256 (null: not known) and
        key_hash.
        System files are left out, and so are unsafe keys.
    """
    if found := image_files(uri):
        root, rows = found[0].uri, read_embedded(*found, labelled=False).rows
    elif _is_manifest(uri):
        root, rows = _manifest_rows(uri, read_table(uri, required=("key",)))
    else:
        reader = open_images(uri)
        root, rows = reader.uri, whole_objects(list_objects(reader.list()))
        if (files := files_of(rows, ".parquet")) is not None:
            rows = read_embedded(reader, files, labelled=False).rows
    usable = pc.is_in(rows["reason"], value_set=pa.array([None, "missing"], pa.string()))
    rows = rows.filter(usable)
    hashes = pa.array(key_hashes(rows))
    rows = rows.select(["key", "offset", "length", "alias"]).append_column("sha256", pa.nulls(len(rows), pa.binary(32)))
    return root, rows.append_column("key_hash", hashes)


def class_names(uri: str, task: str = "auto") -> set[str]:
    """The names of a source's classes as they are now, without listing its images; empty for numbers, or no source."""
    if found := image_files(uri):
        return set(_targets(read_labels(*found), uri, task).classes)
    if _is_manifest(uri):
        return set(_targets(_labels(uri), uri, task).classes)
    if task == "regression":
        return set()
    reader = open_images(uri)

    def named(folder: str) -> set[str]:
        below = f"{folder}/" if folder else ""
        names = (name for name in reader.folders(folder) if refusal(name) is None)
        return {name for name in names if next(reader.list(f"{below}{name}/"), None)}  # some stores show empty ones

    tops = named("")
    return set().union(*map(named, tops)) if _are_splits(sorted(tops), reader.uri) else tops


def _labels(uri: str) -> pa.Array:
    return read_table(uri, required=("key", "label"))["label"].combine_chunks()


def _is_manifest(uri: str) -> bool:
    return uri.lower().endswith((".csv", ".parquet"))


def _from_tree(uri: str, task: str) -> Source:
    reader = open_images(uri)
    rows = whole_objects(list_objects(reader.list()))
    if not len(rows):
        raise DataError("no objects", where=f"data.source: {reader.uri}", fix="check the address")
    for suffix, read in ((".tar", read_samples), (".parquet", read_embedded)):
        if (files := files_of(rows, suffix)) is not None:
            return _from_samples(reader.uri, read(reader, files), task)
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
    return _source(reader.uri, rows, _targets(name, uri, task), split, pa.nulls(len(rows), pa.string()))


def _from_manifest(uri: str, task: str) -> Source:
    table = read_table(uri, required=("key", "label"))
    root, rows = _manifest_rows(uri, table)
    target = _targets(table["label"].combine_chunks(), uri, task)
    return _labelled(root, rows, target, table["split"].combine_chunks(), table["group"].combine_chunks())


def _from_samples(root: str, samples: Samples, task: str) -> Source:
    return _labelled(root, samples.rows, _targets(samples.labels, root, task), samples.split, samples.group)


def _labelled(root: str, rows: pa.Table, target: Targets, split: pa.Array, group: pa.Array) -> Source:
    unlabelled = pc.and_(pc.is_null(rows["reason"]).combine_chunks(), target.missing)
    rows = _with(rows, "reason", pc.if_else(unlabelled, "no label", rows["reason"].combine_chunks()))
    return _source(root, rows, target, split, group)


def _targets(labels: pa.Array, uri: str, task: str) -> Targets:
    text_lists = uri.lower().endswith(".csv") and task not in ("single-label", "binary")
    return targets(labels, text_lists=text_lists, numbers=task == "regression")


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
    objects = list_objects(reader.list(prefix) if len(safe) else [], wanted=safe)
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
    return reader.uri, pa.table(columns, names=CANDIDATE)


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
