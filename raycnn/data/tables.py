"""CSV and Parquet manifests: their columns, keys and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from raycnn.data.manifest import SPLITS, Kind
from raycnn.data.parquet import read_parquet
from raycnn.errors import DataError, ObjectNotFound
from raycnn.storage import open_images
from raycnn.storage.base import shown

SPLIT_NAMES: Final = {"training": "train", "valid": "val", "validation": "val", "testing": "test"} | {
    split: split for split in SPLITS
}
"""Names of splits, in lower case, and what they mean."""

_OPTIONAL: Final = {
    "split": pa.string(),
    "group": pa.string(),
    "offset": pa.int64(),  # with length: the bytes of the object that are the image
    "length": pa.int64(),
    "alias": pa.string(),  # what the image is called, where its key does not tell
}


_NAMED: Final = 20
_LONGEST: Final = 200


@dataclass(frozen=True)
class Targets:
    """Targets of all rows: the columns of the manifest, the classes by name, and where there is none."""

    kind: Kind
    classes: tuple[str, ...]
    name: pa.Array
    label: pa.Array
    labels: pa.Array
    value: pa.Array
    missing: pa.Array


def read_table(uri: str, required: tuple[str, ...]) -> pa.Table:
    """A manifest with the `required` columns, and split, group, offset, length and alias, null where it has none.

    Raises:
        DataError: it is not there or not readable, lacks a column, or names an unknown split.
    """
    folder, _, name = uri.rpartition("/")
    where = f"data.source: {shown(uri)}"
    try:
        data = open_images(folder or ".").get(name)
        columns = (*required, *_OPTIONAL)
        table = _parse_csv(data) if name.lower().endswith(".csv") else read_parquet(data, columns)
    except ObjectNotFound:
        raise DataError("no such manifest", where=where, fix="check the address") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = name.rpartition(".")[2].upper()
        raise DataError(f"not a readable {kind} file", where=where, fix=_short(error)) from None
    if missing := [column for column in required if column not in table.column_names]:
        fix = f"its columns are {', '.join(table.column_names[:_NAMED]) or 'others'}; needed are {', '.join(required)}"
        raise DataError(f"no column {missing[0]}", where=where, fix=fix)
    if twice := [name for name in columns if table.column_names.count(name) > 1]:
        raise DataError(f"two columns {twice[0]}", where=where, fix="rename one of them")
    if not len(table):
        raise DataError("no rows", where=where, fix="list images in it")
    return _typed(table, required, where)


def absolute_keys(folder: str, keys: pa.Array) -> tuple[str, pa.Array]:
    """Keys that may be full uris in the folder's bucket, made relative.

    Returns:
        (root, keys): the folder, or its bucket where a key lies outside of the folder. Uris of other buckets stay.
    """
    scheme, mark, rest = folder.partition("://")
    bucket, _, below = rest.partition("/")
    home = f"{scheme}://{bucket}/"
    full = pc.fill_null(pc.starts_with(keys, home), False)
    if not mark or not pc.any(full).as_py():
        return folder, keys
    inside = f"{below.strip('/')}/" if below else ""
    of_bucket = pc.if_else(
        full, pc.utf8_slice_codeunits(keys, len(home)), pc.binary_join_element_wise(inside, keys, "")
    )
    if pc.all(pc.starts_with(of_bucket, inside)).as_py():
        return folder, pc.utf8_slice_codeunits(of_bucket, len(inside))
    foreign = pc.and_(pc.invert(full), pc.match_substring(keys, "://"))
    return home.rstrip("/"), pc.if_else(foreign, keys, of_bucket)


def split_column(told: pa.ChunkedArray | pa.Array, where: str) -> pa.Array:
    """train, val, test or null by what a column says.

    Raises:
        DataError: another word.
    """
    words = pc.unique(told).to_pylist()
    if unknown := [word for word in words if word and word.lower() not in SPLIT_NAMES]:
        raise DataError(f"unknown split {unknown[0][:_LONGEST]!r}", where=where, fix="use train, val or test")
    meaning = pa.array([SPLIT_NAMES[word.lower()] if word else None for word in words], pa.string())
    places = pc.index_in(told, value_set=pa.array(words, pa.string()))
    return meaning.take(places.combine_chunks() if isinstance(places, pa.ChunkedArray) else places)


def targets(labels: pa.Array, *, text_lists: bool = False, numbers: bool = False) -> Targets:
    """Targets of a label column: text, integers or booleans are classes, lists are lists of classes, floats numbers.

    Classes are sorted, integers by value. `text_lists`: texts with a ";" make a column of lists. `numbers`:
    whatever they are written as, they are numbers.

    Raises:
        DataError: labels of another type, text that is no number, or two classes that look the same but are written in
            different characters.
    """
    try:
        found = _targets(labels, text_lists, numbers)
    except (pa.ArrowException, TypeError) as error:
        fix = f"give text, integers, booleans, numbers, or lists of text; {_short(error)}"
        raise DataError(f"labels of type {labels.type}", where="column label", fix=fix) from None
    seen: dict[str, str] = {}
    for name in found.classes:
        if (other := seen.setdefault(normalize("NFC", name), name)) != name:
            fix = f"write both in the same characters: {other!a}, {name!a}"
            raise DataError(f"two classes that look the same: {name}", where="labels", fix=fix)
    return found


def _targets(labels: pa.Array, text_lists: bool, numbers: bool) -> Targets:
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if numbers:
        return _numbers(labels.cast(pa.float64()))
    if _is_text(labels.type) or pa.types.is_boolean(labels.type):
        labels = labels.cast(pa.string())
        if text_lists and pc.any(pc.match_substring(labels, ";")).as_py():
            return _class_lists([[part.strip() for part in (text or "").split(";")] for text in labels.to_pylist()])
        return _classes(pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels))
    if pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):
        return _class_lists(labels.to_pylist())
    if pa.types.is_floating(labels.type):
        return _numbers(labels.cast(pa.float64()))
    return _classes(labels if pa.types.is_integer(labels.type) else labels.cast(pa.string()))


def _parse_csv(data: bytes) -> pa.Table:
    types = {"key": pa.string(), **_OPTIONAL}
    options = pacsv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    return pacsv.read_csv(pa.BufferReader(data), convert_options=options)


def _typed(table: pa.Table, required: tuple[str, ...], where: str) -> pa.Table:
    columns = {name: table[name] for name in required}
    try:
        columns["key"] = columns["key"].cast(pa.string())
        for name, type_ in _OPTIONAL.items():
            present = name in table.column_names
            columns[name] = table[name].cast(type_) if present else pa.chunked_array([pa.nulls(len(table), type_)])
    except pa.ArrowException as error:
        raise DataError("a column of the wrong type", where=where, fix=_short(error)) from None
    columns["split"] = split_column(columns["split"], where)
    for name in ("group", "alias"):
        columns[name] = pc.if_else(pc.equal(columns[name], ""), pa.scalar(None, pa.string()), columns[name])
    return pa.table(columns)


def _short(error: Exception) -> str:
    return str(error)[:_LONGEST]  # Arrow quotes the row, however long


def _is_text(type_: Any) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _classes(labels: pa.Array) -> Targets:
    values = pc.unique(labels.drop_null()).to_pylist()
    order = pa.array(sorted(values), labels.type)
    label = pc.index_in(labels, value_set=order, skip_nulls=True)
    valid = label.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(valid)]).astype(np.int32)
    return Targets(
        "class",
        tuple(str(value) for value in order.to_pylist()),
        labels.cast(pa.string()),
        label.fill_null(-1),
        pa.ListArray.from_arrays(offsets, label.drop_null()),
        pa.nulls(len(labels), pa.float64()),
        pc.is_null(label),
    )


def _class_lists(rows: list[list[Any] | None]) -> Targets:
    names = sorted({item for row in rows for item in row or () if item not in (None, "")})
    number = {name: place for place, name in enumerate(names)}
    labels = [sorted({number[item] for item in row or () if item in number}) for row in rows]
    texts = [";".join(str(names[label]) for label in row) for row in labels]
    return Targets(
        "classes",
        tuple(map(str, names)),
        pa.array(texts, pa.string()),
        pa.array(np.full(len(rows), -1, np.int32)),
        pa.array(labels, pa.list_(pa.int32())),
        pa.nulls(len(rows), pa.float64()),
        pa.array([row is None for row in rows], pa.bool_()),
    )


def _numbers(values: pa.Array) -> Targets:
    return Targets(
        "number",
        (),
        pa.nulls(len(values), pa.string()),
        pa.array(np.full(len(values), -1, np.int32)),
        pa.array([[]] * len(values), pa.list_(pa.int32())),
        values,
        pc.fill_null(pc.invert(pc.is_finite(values)), True),
    )
