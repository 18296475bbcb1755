"""Images in compressed or encoded row groups of Parquet files, which have no bytes of their own in the file.

FILE.parquet#N is read as if it were an object: the images of row group N, one after the other. A row is a byte range
of it as of any other object.
"""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycnn.data.objects import ObjectFile
from raycnn.storage import open_images
from raycnn.storage.base import Reader

MAX_GROUP_BYTES: Final = 1 << 30
"""Of the images of one row group; it is unpacked whole."""
_KEPT_BYTES: Final = 128 << 20  # of a process
_KEPT_GROUPS: Final = 2  # at least: threads work at the end of one while others begin with the next
_KEPT_FILES: Final = 64
_ROWS: Final = 64
_KEY: Final = re.compile(r"(?s)(?P<file>.+\.parquet)#(?P<group>[0-9]{1,9})", re.IGNORECASE)
_NAMES: Final = ("image", "img", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp")


def image_column(schema: pa.Schema) -> str | None:
    """The path of the column with the bytes of images: binary, or binary `bytes` in a struct; None without one."""
    for name in _NAMES:
        if schema.names.count(name) == 1:
            kind = schema.field(name).type
            if _is_binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type):
                return f"{name}.bytes"
    return None


def group_key(file: str, group: int) -> str:
    """The key by which the images of a row group are read."""
    return f"{file}#{group}"


def is_group(key: str) -> bool:
    """Whether a key is a row group's."""
    return _KEY.fullmatch(key) is not None


def group_images(file: pq.ParquetFile, group: int, column: str) -> Iterator[pa.LargeBinaryArray]:
    """The images of a row group, some rows at a time.

    Raises:
        pa.ArrowException, OSError: damaged, or more than MAX_GROUP_BYTES.
    """
    room = MAX_GROUP_BYTES
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[column], use_threads=False):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, "bytes")
        room -= values.nbytes
        if room < 0:
            raise pa.ArrowInvalid(f"row group {group} has more than {MAX_GROUP_BYTES >> 30} GiB of images")
        yield values.cast(pa.large_binary())


class RowBytes:
    """Reads byte ranges of objects and of row groups; thread-safe.

    The last row groups that were read are kept unpacked. A thread that asks for the same range twice in a row has
    found it wrong: the second answer comes from the store again.

    Args:
        reader: of the objects.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader, self._lock, self._last = reader, threading.Lock(), threading.local()
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[str, memoryview] = OrderedDict()

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """As `Reader.get`; of a row group that cannot be unpacked, nothing."""
        place = _KEY.fullmatch(key)
        if place is None:
            return self._reader.get(key, offset, length)
        doubted = getattr(self._last, "asked", None) == (key, offset, length)
        self._last.asked = key, offset, length
        with self._lock:
            if doubted:
                self._groups.pop(key, None)
                self._files.pop(place["file"], None)
            group = self._groups.get(key)
            if group is None:
                group = self._unpacked(place["file"], int(place["group"]))
                self._keep(key, group)
            else:
                self._groups.move_to_end(key)
        return bytes(group[offset : None if length is None else offset + length])

    def _unpacked(self, name: str, group: int) -> memoryview:
        try:
            file = self._files.get(name) or self._opened(name)
            column = image_column(file.schema_arrow)
            if column is None or group >= file.num_row_groups:
                return memoryview(b"")
            images = pa.concat_arrays([pa.array([], pa.large_binary()), *group_images(file, group, column)])
        except (pa.ArrowException, OSError):  # damaged or changed since it was indexed
            return memoryview(b"")
        _, offsets, data = images.buffers()
        ends = memoryview(offsets).cast("q")
        return memoryview(data or b"").cast("B")[ends[images.offset] : ends[images.offset + len(images)]]

    def _opened(self, name: str) -> pq.ParquetFile:
        self._files[name] = open_parquet(self._reader, name, self._reader.stat(name).size)
        while len(self._files) > _KEPT_FILES:
            self._files.popitem(last=False)
        return self._files[name]

    def _keep(self, key: str, group: memoryview) -> None:
        self._groups[key] = group
        while len(self._groups) > _KEPT_GROUPS and sum(map(len, self._groups.values())) > _KEPT_BYTES:
            self._groups.popitem(last=False)


def open_parquet(reader: Reader, key: str, size: int, **options: Any) -> pq.ParquetFile:
    """An object as a Parquet file; its footer is read.

    Raises:
        pa.ArrowException, OSError: it is none.
        StorageError: the store failed.
    """
    return pq.ParquetFile(pa.PythonFile(ObjectFile(reader, key, size), mode="r"), **options)


def buffered(reader: Reader, key: str, size: int, ahead: int) -> io.BufferedReader:
    """An object as a file that is read from one end to the other, `ahead` bytes at a time."""
    return io.BufferedReader(ObjectFile(reader, key, size), ahead)


@lru_cache(maxsize=8)  # one client per process and source
def open_rows(uri: str) -> RowBytes:
    """What reads the rows of a source."""
    return RowBytes(open_images(uri))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
