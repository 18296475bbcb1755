"""Which columns of a Parquet file hold images and what is told of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from raycnn.data.rowgroups import image_column
from raycnn.errors import DataError

_LABELS: Final = ("label", "labels")
_TEXTS: Final = ("key", "split", "group")
_NAMED: Final = 20


@dataclass(frozen=True)
class Layout:
    """What of a file's schema matters; the same in all files of a source.

    Args:
        image: path of the column with the bytes.
        label: name of the column of labels, if there is one.
        label_type: its Arrow type.
        names: of the classes by number, where the schema has them.
        texts: those of key, split and group that are there.
        path: path of the column with what images were called, if there is one.
    """

    image: str
    label: str | None
    label_type: str
    names: tuple[str, ...]
    texts: tuple[str, ...]
    path: str | None


def layout_of(schema: pa.Schema, where: str, *, labelled: bool) -> Layout:
    """The layout of one file.

    Args:
        schema: of the file.
        where: which, in messages.
        labelled: whether there has to be a label.

    Raises:
        DataError: no images, or no label.
    """
    image = image_column(schema)
    columns = ", ".join(schema.names[:_NAMED])
    if image is None:
        fix = f"its columns are {columns}; needed is image, binary or a struct with bytes"
        raise DataError("no column with the bytes of images", where=where, fix=fix)
    label = next((name for name in _LABELS if schema.names.count(name) == 1), None)
    if label is None and labelled:
        raise DataError("no column label", where=where, fix=f"its columns are {columns}; add label")
    beside = image.rpartition(".")[0]
    path = f"{beside}.path" if beside and schema.field(beside).type.get_field_index("path") >= 0 else None
    texts = tuple(name for name in _TEXTS if schema.names.count(name) == 1)
    kind = str(schema.field(label).type) if label else ""
    return Layout(image, label, kind, _class_names(schema, label), texts, path)


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """The names that `datasets` leaves in the schema of a ClassLabel, or of a list of them."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = (told.get("feature") or told)["names"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
