"""Tar shards as WebDataset has them, read in place: the members of one name are a sample, its image a byte range.

A sample is `NAME.jpg` (or another image) with its class in `label` of `NAME.json`, in `NAME.cls`, or else in the first
folder of NAME, which goes up to the first dot after the last "/". The row is called by `alias` of NAME.json, or else
SHARD/NAME.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from raycnn.data.objects import ObjectFile
from raycnn.data.tables import SPLIT_NAMES
from raycnn.errors import DataError
from raycnn.storage.base import Reader, parse_json

_IMAGES: Final = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
_MAX_TEXT: Final = 1 << 20
_READ_AHEAD: Final = 1 << 20
_THREADS: Final = 8
_SPLIT: Final = re.compile(r"(?P<name>[A-Za-z]+)(?:[-_./]|$)")
SAMPLE: Final = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("reason", pa.string()),
        ("alias", pa.string()),
    ]
)
"""What is told of an image inside a larger file."""


@dataclass(frozen=True)
class Samples:
    """What lies in shards.

    Args:
        rows: SAMPLE.
        labels: per row, as `raycnn.data.tables.targets` takes them.
        split: train, val or test, by the names of the shards or of their folders; null where nothing is said.
        group: null where nothing is said.
    """

    rows: pa.Table
    labels: pa.Array
    split: pa.Array
    group: pa.Array


def files_of(listing: pa.Table, suffix: str) -> pa.Table | None:
    """Those rows of a listing that end in `suffix`; None where anything else lies there.

    A manifest and what describes the files may lie beside them.
    """
    usable = listing.filter(pc.is_null(listing["reason"]))
    wanted = pc.ends_with(usable["key"], suffix)
    told = pc.match_substring_regex(usable["key"], r"\.(json|parquet|txt|md|idx)$", ignore_case=True)
    alone = pc.all(pc.or_(wanted, told)).as_py()
    usable = usable.filter(wanted)
    return usable if alone and len(usable) else None


def read_samples(reader: Reader, shards: pa.Table) -> Samples:
    """Walk through the headers of all shards.

    Raises:
        DataError: a shard is no tar file, or damaged; labels of several kinds.
        StorageError: the store failed.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda shard: list(_samples(reader, shard)), shards.to_pylist()))
    samples = [sample for each in found for sample in each]
    if not samples:
        raise DataError("no images in the shards", where=f"data.source: {reader.uri}", fix="check the address")
    labels = [sample.label for sample in samples]
    texts = [str(label) if isinstance(label, int | str) else label for label in labels]
    try:
        typed = pa.array(labels if all(isinstance(label, int) for label in labels) else texts)
    except pa.ArrowException as error:
        fix = "give every sample a class, a list of classes, or a number"
        raise DataError(f"labels of several kinds: {error}", where=f"data.source: {reader.uri}", fix=fix) from None
    rows = pa.Table.from_pylist([sample.row for sample in samples], SAMPLE)
    rows = rows.set_column(5, "reason", pc.if_else(typed.is_null(), "no label", pa.nulls(len(rows), pa.string())))
    return Samples(rows, typed, split_of(rows["key"].to_pylist()), pa.nulls(len(rows), pa.string()))


@dataclass
class _Sample:
    row: dict[str, Any] | None = None
    label: Any = None
    described: dict[str, Any] = field(default_factory=dict)


def _samples(reader: Reader, shard: dict[str, Any]) -> Iterator[_Sample]:
    """The samples with an image, in the order of the shard."""
    file = io.BufferedReader(ObjectFile(reader, shard["key"], shard["size"]), _READ_AHEAD)
    where = f"{reader.uri}/{shard['key']}"
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one
                if member.isfile():
                    _add(samples, tar, member, shard)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"not a readable tar file: {error}", where=where, fix="write this shard again") from None
    if reader.get(shard["key"], end, tarfile.BLOCKSIZE).strip(b"\0"):
        raise DataError(f"the tar file is damaged at byte {end}", where=where, fix="write this shard again")
    for name, sample in samples.items():
        if sample.row is not None:
            folder, mark, _ = name.partition("/")
            by_folder = folder if mark else None
            sample.label = sample.described.get("label", by_folder if sample.label is None else sample.label)
            sample.row["alias"] = str(sample.described.get("alias", f"{shard['key']}/{name}"))
            yield sample


def _add(samples: dict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo, shard: dict[str, Any]) -> None:
    folder, slash, base = member.name.rpartition("/")
    base, _, kind = base.partition(".")
    kind = kind.lower()
    sample = samples.setdefault(folder + slash + base, _Sample())
    if kind.rpartition(".")[2] in _IMAGES and sample.row is None:
        place = {"offset": member.offset_data, "length": member.size}
        sample.row = {**place, "key": shard["key"], "size": shard["size"], "etag": shard["etag"]}
    elif kind in ("cls", "json") and member.size <= _MAX_TEXT:
        opened = tar.extractfile(member)
        text = opened.read() if opened else b""
        if kind == "cls":
            sample.label = _class(text)
            return
        try:
            told = parse_json(text)
        except ValueError:
            return
        sample.described = told if isinstance(told, dict) else {}


def _class(text: bytes) -> int | str | None:
    name = text.decode(errors="replace").strip()
    return int(name) if re.fullmatch(r"-?[0-9]{1,9}", name) else name or None


def split_of(keys: list[str], *, anywhere: bool = False) -> pa.Array:
    """The split of each key by its first word, if all of them begin with the name of one.

    `anywhere`: by the first word of the name or else of a folder, from the name up.
    """

    def told(key: str) -> str | None:
        parts = key.split("/")[::-1] if anywhere else [key]
        words = (match["name"].lower() for match in map(_SPLIT.match, parts) if match)
        return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)

    found = {key: told(key) for key in set(keys)}
    if None in found.values():
        return pa.nulls(len(keys), pa.string())
    return pa.array([found[key] for key in keys], pa.string())
