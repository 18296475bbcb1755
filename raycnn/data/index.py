"""Building the manifest: list the source, decode every object once, split, and pin the result by its hash."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.config import Config, DataConfig
from raycnn.data.decode import Limits
from raycnn.data.examine import VERDICTS, Examiner
from raycnn.data.fetch import threads_for
from raycnn.data.manifest import (
    QUARANTINE,
    SCHEMA,
    SPLITS,
    Index,
    content_hash,
    key_hashes,
    read_facts,
    read_index,
    row_names,
    shown_names,
    sort_rows,
    write_index,
)
from raycnn.data.sources import UNCOUNTED, Source, read_source
from raycnn.data.splits import UNKNOWN, equal_rows, join_duplicates, split_rows
from raycnn.errors import CheckpointError, DataError
from raycnn.storage import Store

_NAMED: Final = 20
_NAMES_BYTES: Final = ("key", "etag", "size", "offset", "length")  # equal for two rows: so are their bytes
_log = logging.getLogger(__name__)


def build_index(
    config: Config, store: Store, progress: Callable[[int, int], None], ray: Callable[[], None] = lambda: None
) -> Index:
    """Index the source and store the result under index/HASH/. Needs an initialised Ray when much is new.

    Every object of the source ends as a row or in the quarantine with a reason. Objects that an earlier index with
    the same limits has read, and whose size and tag are the same, are not read again.

    Args:
        config: of the run; its section `data` is what is looked at.
        store: the root of run.storage.
        progress: called with (objects done, objects in all).
        ray: called before Ray is used; returns once it is initialised.

    Raises:
        DataError: too many bad images, or nothing to train or validate on.
        StorageError: the store failed.
    """
    data = config.data
    source, limits = read_source(data.source, data.task), Limits(data.max_pixels, data.max_bytes)
    rows = source.rows.append_column("row", pa.array(np.arange(len(source.rows))))
    rows = rows.filter(pc.is_null(rows["reason"]))
    verdicts, unread = _known(store, source.root, limits, rows)
    done = len(rows) - len(unread)
    progress(done, len(rows))
    for block in Examiner(source.root, limits, threads_for(source.root, data.fetch_threads)).examine(unread, ray):
        verdicts.append(block)
        done += len(block)
        progress(done, len(rows))
    good, quarantine = _judged(source, pa.concat_tables([VERDICTS.empty_table(), *verdicts]), data)
    _check_budget(source, quarantine, data)
    index = _assembled(good, quarantine, source, store, config)
    _check_rows(index, data, config.train.folds)
    if index.conflicts:
        pair = " and ".join(index.conflicts[0])
        _log.warning("equal images with different labels: %d pairs, the first %s", len(index.conflicts), pair)
    if not _is_stored(index, store):
        store.child("index").sweep()
        write_index(index, store)
    return index


def _known(store: Store, root: str, limits: Limits, rows: pa.Table) -> tuple[list[pa.Table], pa.Table]:
    """VERDICTS of the rows that earlier indexes have read, and the rows that none has."""
    found = []
    for hash in _earlier(store, root, limits):
        if not len(rows):
            break
        try:
            seen = _seen(read_index(store, hash))
        except DataError:  # damaged: no use here, and written anew if the same rows come out
            continue
        places = pc.index_in(_fingerprints(rows), value_set=_fingerprints(seen))
        hit = pc.is_valid(places)
        verdicts = seen.take(places.drop_null()).select(VERDICTS.names[1:])
        found.append(verdicts.add_column(0, "row", rows.filter(hit)["row"]).cast(VERDICTS))
        rows = rows.filter(pc.invert(hit))
    return found, rows


def _earlier(store: Store, root: str, limits: Limits) -> list[str]:
    """Hashes of the indexes of the same source with the same limits, newest first."""
    usable = []
    for hash in store.folders("index"):
        try:
            facts = read_facts(store, hash)
        except (DataError, CheckpointError):  # damaged, or of a newer raycnn
            continue
        if facts["source"] == root and facts["limits"] == vars(limits):
            usable.append((facts["created"], hash))
    return [hash for _, hash in sorted(usable, reverse=True)]


def _seen(index: Index) -> pa.Table:
    """All that was read for an index, good and bad."""
    read = index.quarantine.filter(pc.is_valid(index.quarantine["sha256"]))
    named = [*_NAMES_BYTES, "sha256"]
    good = index.manifest.select([*named, "width", "height", "format"])
    return pa.concat_tables([good, read.select([*named, "reason"])], promote_options="default")


def _fingerprints(rows: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(*(pc.cast(rows[n].combine_chunks(), pa.string()) for n in _NAMES_BYTES), "\0")


def _judged(source: Source, verdicts: pa.Table, data: DataConfig) -> tuple[pa.Table, pa.Table]:
    """The good rows with what reading said of them, and the quarantine."""
    refused = pc.is_valid(source.rows["reason"])
    read = source.rows.filter(pc.invert(refused)).drop_columns("reason")
    verdicts = verdicts.sort_by("row")
    for name in VERDICTS.names[1:]:
        read = read.append_column(name, verdicts[name])
    bad = read.filter(pc.is_valid(read["reason"]))
    bad = _with_splits(bad, _splits(bad, data, stratify=False))  # where it would have gone
    quarantine = pa.concat_tables([source.rows.filter(refused), bad], promote_options="default")
    quarantine = quarantine.drop_columns("label").rename_columns({"name": "label"}).select(QUARANTINE.names)
    return read.filter(pc.is_null(read["reason"])), quarantine.cast(QUARANTINE).sort_by("key")


def _assembled(good: pa.Table, quarantine: pa.Table, source: Source, store: Store, config: Config) -> Index:
    hashes = key_hashes(good)
    same = equal_rows(good["sha256"].to_pylist())
    splits = _splits(good, config.data, stratify=config.data.stratify)
    splits = join_duplicates(splits, _units(good), _given(good), hashes, same)
    duplicates, conflicts = _pairs(good, same)
    manifest = _with_splits(good, splits).append_column("key_hash", pa.array(hashes))
    manifest = sort_rows(manifest.select(SCHEMA.names).cast(SCHEMA))
    hash = content_hash(manifest, source.kind, source.classes)
    return Index(
        hash=hash,
        source=source.root,
        path=f"{store.uri}/index/{hash}",
        kind=source.kind,
        classes=source.classes,
        manifest=manifest,
        quarantine=quarantine,
        duplicates=duplicates,
        conflicts=conflicts,
        limits=Limits(config.data.max_pixels, config.data.max_bytes),
    )


def _splits(rows: pa.Table, data: DataConfig, *, stratify: bool) -> npt.NDArray[np.int64]:
    names = np.array([name or "" for name in rows["name"].to_pylist()], object)
    return split_rows(
        _units(rows),
        _given(rows),
        np.unique(names, return_inverse=True)[1] if stratify else None,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
    )


def _units(rows: pa.Table) -> list[str]:
    groups = rows["group"].to_pylist()
    return [name if group is None else group for group, name in zip(groups, row_names(rows), strict=True)]


def _given(rows: pa.Table) -> npt.NDArray[np.int64]:
    places = pc.index_in(rows["split"], value_set=pa.array(SPLITS)).fill_null(UNKNOWN)
    return np.asarray(places.to_numpy(), np.int64)


def _with_splits(rows: pa.Table, splits: npt.NDArray[np.int64]) -> pa.Table:
    names = pa.array(SPLITS).take(pa.array(splits))
    return rows.set_column(rows.schema.get_field_index("split"), "split", names)


def _pairs(rows: pa.Table, same: list[npt.NDArray[np.int64]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of keys with equal bytes, each with the first of its set; and those whose targets differ."""
    duplicates, conflicts = [], []
    for places in same:
        taken = rows.take(places)
        taken = taken.select(["labels", "value"]).append_column("shown", shown_names(taken)).sort_by("shown")
        first, *others = taken.to_pylist()
        duplicates += [(first["shown"], other["shown"]) for other in others]
        differing = [
            other for other in others if (other["labels"], other["value"]) != (first["labels"], first["value"])
        ]
        conflicts += [(first["shown"], other["shown"]) for other in differing]
    return sorted(duplicates), sorted(conflicts)


def _check_budget(source: Source, quarantine: pa.Table, data: DataConfig) -> None:
    def counted(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.invert(pc.is_in(rows["reason"], value_set=pa.array(UNCOUNTED))))

    bad, total = counted(quarantine), len(counted(source.rows))
    if len(bad) > data.bad_image_budget * total:
        named = bad.slice(0, _NAMED)
        pairs = zip(shown_names(named).to_pylist(), named["reason"].to_pylist(), strict=True)
        first = [f"{name}: {reason}" for name, reason in pairs]
        raise DataError(
            f"{len(bad)} of {total} images cannot be used, more than the share {data.bad_image_budget:g}",
            where=", ".join(first) + (", ..." if len(bad) > _NAMED else ""),
            fix="repair or remove them, or raise data.bad_image_budget",
        )


def _check_rows(index: Index, data: DataConfig, folds: int | None) -> None:
    where = f"data.source: {data.source}"
    if not len(index.manifest):
        raise DataError("no usable image", where=where, fix="check the address and the formats")
    train, val = index.rows("train"), index.rows("val")
    if folds:  # which are made of both
        train = val = pa.concat_tables([train, val])
    if index.kind != "number":
        if len(index.classes) < 2:
            raise DataError(f"one class only: {index.classes[0]}", where=where, fix="add images of another class")
        trained = set(pc.unique(pc.list_flatten(train["labels"])).to_pylist())
        if untrained := [name for label, name in enumerate(index.classes) if label not in trained]:
            named = ", ".join(untrained[:_NAMED])
            fix = "add images of them, or lower data.val_fraction and data.test_fraction"
            raise DataError(f"classes without training images: {named}", where=where, fix=fix)
    if not len(train):
        raise DataError("no training images", where=where, fix="add images, or lower data.val_fraction")
    if not len(val) and data.val_fraction:
        fix = "add images, raise data.val_fraction, or set it to 0 to train without"
        raise DataError("no validation images", where=where, fix=fix)


def _is_stored(index: Index, store: Store) -> bool:
    try:
        return read_index(store, index.hash) == index
    except DataError:
        return False
