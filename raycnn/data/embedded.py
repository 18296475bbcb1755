"""Parquet files with the bytes of images in a column, as Hugging Face's `datasets` exports them, read in place.

The image is `bytes` in the struct `image`, or a binary column; the target `label` or `labels`, by the names of a
ClassLabel where the schema has them; `split`, `group` and `key` may be there. A row is called by `key`, or else
by the `path` beside its bytes, if no other row has the same, or else by FILE/ROW. Where the column is PLAIN and not
compressed a row is a byte range of the file, elsewhere of the unpacked row group, see `raycnn.data.rowgroups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycnn.data.layout import Layout, layout_of
from raycnn.data.pages import plain_ranges
from raycnn.data.rowgroups import MAX_GROUP_BYTES, buffered, group_images, group_key, image_column, open_parquet
from raycnn.data.tables import split_column
from raycnn.data.webdataset import SAMPLE, Samples, split_of
from raycnn.errors import DataError, ObjectNotFound, RaycnnError
from raycnn.storage import open_images
from raycnn.storage.base import Reader

_THREADS: Final = 8
_READ_AHEAD: Final = 1 << 20
_ROWS: Final = 1024
_ROOM: Final = 64 << 20


def image_files(uri: str) -> tuple[Reader, pa.Table] | None:
    """A .parquet file of images as (reader of its folder, listing); None if it is anything else, as a manifest is."""
    folder, _, name = uri.rpartition("/")
    if not name.lower().endswith(".parquet"):
        return None
    reader = open_images(folder or ".")
    try:
        entry = reader.stat(name)
        schema = open_parquet(reader, name, entry.size).schema_arrow
    except (ObjectNotFound, pa.ArrowException, OSError):
        return None  # for those to tell who read manifests
    if image_column(schema) is None:
        return None
    return reader, pa.table({"key": [name], "size": [entry.size], "etag": [entry.etag]})


def read_embedded(reader: Reader, files: pa.Table, *, labelled: bool = True) -> Samples:
    """The rows of all files, in their order.

    Args:
        reader: of the source.
        files: key, size and etag of each.
        labelled: whether there have to be labels.

    Raises:
        DataError: a file cannot be read or has no images or no labels; files of several schemas.
        StorageError: the store failed.
    """
    layout, tables = _each(reader, files, lambda entry: _File(reader, entry, labelled).rows())
    table = pa.concat_tables(tables).combine_chunks()
    if not len(table):
        raise DataError("no rows", where=f"data.source: {reader.uri}", fix="check the address")
    labels = _named(table["label"].combine_chunks(), layout.names)
    split = table["split"].combine_chunks()
    if split.null_count == len(split):
        split = split_of(table["file"].to_pylist(), anywhere=True)
    rows = table.append_column("alias", _names(table))
    return Samples(rows.select(SAMPLE.names).cast(SAMPLE), labels, split, table["group"].combine_chunks())


def read_labels(reader: Reader, files: pa.Table) -> pa.Array:
    """The labels of all files, as of `read_embedded`, whose images are not looked at; errors too."""
    layout, tables = _each(reader, files, lambda entry: _File(reader, entry, True).beside())
    return _named(pa.concat_tables(tables)["label"].combine_chunks(), layout.names)


def _each(
    reader: Reader, files: pa.Table, read: Callable[[dict[str, Any]], tuple[Layout, pa.Table]]
) -> tuple[Layout, list[pa.Table]]:
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(read, files.to_pylist()))
    first = parts[0][0]
    for key, (layout, _) in zip(files["key"].to_pylist(), parts, strict=True):
        if layout != first:
            what, fix = f"another schema than {files['key'][0].as_py()}", "write all files with the same columns"
            raise DataError(what, where=f"{reader.uri}/{key}", fix=fix)
    return first, [table for _, table in parts]


class _File:
    """One of the files; what cannot be read is a DataError."""

    def __init__(self, reader: Reader, entry: dict[str, Any], labelled: bool) -> None:
        self._reader, self._entry, self._labelled = reader, entry, labelled
        self._where = f"{reader.uri}/{entry['key']}"

    def rows(self) -> tuple[Layout, pa.Table]:
        """(layout, the columns of SAMPLE but for alias, and of `beside`, and file)."""
        with self._opened() as file:
            layout = layout_of(file.schema_arrow, self._where, labelled=self._labelled)
            table, places = self._beside(file, layout), [_PLACES.empty_table()]
            places += [self._places(file, layout.image, group) for group in range(file.num_row_groups)]
            found = pa.concat_tables(places)
            if len(found) != len(table):
                raise pa.ArrowInvalid("columns of different lengths")
        for name in found.column_names:
            table = table.append_column(name, found[name])
        for name, value in (("file", self._entry["key"]), ("size", self._entry["size"]), ("etag", self._entry["etag"])):
            table = table.append_column(name, pa.array([value] * len(table)))
        return layout, table

    def beside(self) -> tuple[Layout, pa.Table]:
        """(layout, name, path, label, split and group of every row)."""
        with self._opened() as file:
            layout = layout_of(file.schema_arrow, self._where, labelled=self._labelled)
            return layout, self._beside(file, layout)

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        key, size = self._entry["key"], self._entry["size"]
        try:
            file = open_parquet(self._reader, key, size, buffer_size=_READ_AHEAD)
            if file.metadata.num_rows > size:
                raise pa.ArrowInvalid(f"{file.metadata.num_rows} rows in {size} bytes")
            yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            what = f"not a readable Parquet file: {str(error)[:200]}"
            raise DataError(what, where=self._where, fix="write this file again") from None

    def _beside(self, file: pq.ParquetFile, layout: Layout) -> pa.Table:
        wanted = [name for name in (layout.label, *layout.texts, layout.path) if name]
        room, batches = _ROOM + 4 * self._entry["size"], []
        for batch in file.iter_batches(_ROWS, columns=wanted, use_threads=False) if wanted else ():
            room -= batch.nbytes
            if room < 0:
                raise pa.ArrowInvalid("what stands beside the images is larger than they are")
            batches.append(batch)
        nothing = pa.nulls(file.metadata.num_rows, pa.string())
        found = pa.Table.from_batches(batches) if batches else pa.table({"": nothing})

        def text(name: str | None) -> Any:
            if name is None or name not in wanted:
                return nothing
            top, inside, _ = name.partition(".")
            return (pc.struct_field(found[top], "path") if inside else found[top]).cast(pa.string())

        label = found[layout.label] if layout.label else nothing
        split = split_column(text("split"), self._where)
        names = {"name": _told(text("key")), "path": _told(text(layout.path)), "group": _told(text("group"))}
        return pa.table({**names, "label": label, "split": split})

    def _places(self, file: pq.ParquetFile, image: str, group: int) -> pa.Table:
        """key, offset, length and reason of the rows of a row group."""
        facts = file.metadata.row_group(group)
        (place,) = (n for n in range(facts.num_columns) if facts.column(n).path_in_schema == image)
        chunk, key = facts.column(place), self._entry["key"]
        ranges = self._plain(file, chunk, place)
        if ranges is not None and len(ranges) == facts.num_rows:  # else some are null
            return _placed(key, np.array(ranges, np.int64).reshape(-1, 2).T, pa.nulls(len(ranges), pa.string()))
        if chunk.total_uncompressed_size > MAX_GROUP_BYTES:
            what = f"{chunk.total_uncompressed_size / 1e9:.1f} GB of images in one row group, compressed or encoded"
            fix = "write smaller row groups, or the images without compression and dictionary"
            raise DataError(what, where=self._where, fix=fix)
        images = [pa.array([], pa.large_binary()), *group_images(file, group, image)]
        lengths = pa.concat_arrays([pc.binary_length(part) for part in images])
        numbers = lengths.fill_null(0).to_numpy().astype(np.int64)
        reason = pc.if_else(lengths.is_null(), "no image", pa.nulls(len(lengths), pa.string()))
        return _placed(group_key(key, group), np.stack([np.cumsum(numbers) - numbers, numbers]), reason)

    def _plain(self, file: pq.ParquetFile, chunk: Any, place: int) -> list[tuple[int, int]] | None:
        """The byte ranges of the images of a column chunk in the file, as far as it has such."""
        levels = file.schema.column(place)
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or levels.max_repetition_level:
            return None
        start, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        source = buffered(self._reader, self._entry["key"], self._entry["size"], _READ_AHEAD)
        try:
            return plain_ranges(source, start, end, nullable=levels.max_definition_level > 0)
        except RaycnnError:
            raise
        except (ValueError, LookupError):
            return None


_PLACES: Final = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("reason", pa.string())]
)


def _placed(key: str, places: Any, reason: pa.Array) -> pa.Table:
    return pa.Table.from_arrays([pa.array([key] * len(reason), pa.string()), *places, reason], schema=_PLACES)


def _named(labels: pa.Array, names: tuple[str, ...]) -> pa.Array:
    """Class numbers as names, if there are names; null where there is none such."""
    if not names:
        return labels
    if pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):
        offsets = labels.offsets
        return type(labels).from_arrays(offsets, _named(labels.values, names), mask=labels.is_null())
    if not pa.types.is_integer(labels.type):
        return labels
    known = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
    return pa.array(names, pa.string()).take(pc.if_else(known, labels, pa.scalar(None, labels.type)))


def _names(table: pa.Table) -> pa.Array:
    """What each row is called."""
    files = table["file"].combine_chunks()
    runs = files.dictionary_encode().indices.to_numpy()
    firsts = np.searchsorted(runs, np.arange(runs.max() + 1))
    numbers = pa.array(np.arange(len(runs)) - firsts[runs]).cast(pa.string())
    told = [_alone(table[name].combine_chunks()) for name in ("name", "path")]
    return pc.coalesce(*told, pc.binary_join_element_wise(files, numbers, "/"))


def _alone(names: pa.Array) -> pa.Array:
    """The names that one row alone has; null elsewhere."""
    codes = names.dictionary_encode().indices
    counts = np.bincount(codes.drop_null().to_numpy(), minlength=1)
    alone = pc.equal(pa.array(counts).take(codes), 1)
    return pc.if_else(alone, names, pa.scalar(None, pa.string()))


def _told(texts: Any) -> Any:
    """Null where nothing is said."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
