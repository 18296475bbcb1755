"""Cross-validation: which rows train and which validate in a fold; arithmetic over the pinned manifest.

The rows that are train or val make the folds; whatever split them before is put aside, and test stays test. So an
index needs no copy for a fold: whoever reads it sees its rows as the run's settings say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raycnn.data.keyed import UInt64s, derive_seed, mix64
from raycnn.data.manifest import SPLITS, Index, Kind, read_index, sort_rows
from raycnn.data.splits import TEST, TRAIN, VAL, Ints, equal_rows, joined_units
from raycnn.errors import DataError
from raycnn.storage import Store

NEEDED: Final = ("key", "offset", "alias", "sha256", "key_hash", "label", "target", "group", "split")
"""Columns of a manifest that folds follow from."""

_NAMED: Final = 20


@dataclass(frozen=True)
class Fold:
    """One fold: its rows validate, and the rows of the others train.

    Args:
        number: from 0.
        of: how many there are.
        seed: of the split.
    """

    number: int
    of: int
    seed: int


def fold_of(settings: Mapping[str, Any]) -> Fold | None:
    """The fold that a run trains, by its settings' dotted paths (`raycnn.config.identity`); None: all, or none."""
    number = settings.get("train.fold")
    return None if number is None else Fold(number, settings["train.folds"], settings["data.split_seed"])


def read_rows(store: Store, hash: str, settings: Mapping[str, Any], columns: Sequence[str]) -> Index:
    """A stored index as a run with these settings sees it; with what folds follow from where they have any.

    Args:
        store: the root of run.storage.
        hash: of the index.
        settings: see `fold_of`.
        columns: see `read_index`.
    """
    more = NEEDED if settings.get("train.folds") else ()
    return as_fold(read_index(store, hash, (*columns, *more)), fold_of(settings))


def as_fold(index: Index, fold: Fold | None) -> Index:
    """The index with the fold's rows as val and those of the others as train; under its own hash, which pins both.

    Args:
        index: with the columns NEEDED; seen as any fold, or as none.
        fold: None leaves it as it is.

    Raises:
        DataError: too few rows, groups or images of a class for so many folds.
    """
    if fold is None:
        return index
    manifest = index.manifest
    splits = np.asarray(pc.index_in(manifest["split"], value_set=pa.array(SPLITS)).to_numpy(), np.int64)
    ours = splits != TEST
    rows = manifest.filter(pa.array(ours))
    numbers = assign(rows, index.kind, fold.of, fold.seed)
    _check(rows, index, numbers, fold.of)
    splits[ours] = np.where(numbers == fold.number, VAL, TRAIN)
    names = pa.array(SPLITS).take(pa.array(splits))
    return replace(
        index, manifest=sort_rows(manifest.set_column(manifest.schema.get_field_index("split"), "split", names))
    )


def assign(rows: pa.Table, kind: Kind, folds: int, seed: int) -> Ints:
    """The fold of each row, int64[N]; it depends on what the rows are and on the seed, not on their order.

    Rows of a group stay together, and so do those of equal bytes. Rows on their own are ranked by the hash of their
    name within their class and dealt out, class after class, so that folds differ by at most one row in each class and
    in all. Rows that stay together come before that, the largest units first, each to the fold that has the least of
    what it holds: where the sum, over folds and classes, of squared counts over the class's total grows least.

    Args:
        rows: with the columns NEEDED.
        kind: of their targets; numbers have no classes, and of several classes of a row the rarest counts.
        folds: how many.
        seed: of the split.
    """
    names = _unit_hashes(rows)
    _, unit_N = np.unique(names, return_inverse=True)
    _, unit_N = np.unique(joined_units(unit_N, equal_rows(rows["sha256"].to_pylist())), return_inverse=True)
    strata_N = _strata(rows, kind)
    places_U = np.full(int(unit_N.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(places_U, unit_N, mix64(names + np.uint64(derive_seed(seed, "folds"))))
    several_N = np.bincount(unit_N)[unit_N] > 1
    numbers = np.empty(len(rows), np.int64)
    _place_units(numbers, np.flatnonzero(several_N), unit_N, strata_N, places_U, folds)
    alone = np.flatnonzero(~several_N)
    alone = alone[np.lexsort((places_U[unit_N[alone]], strata_N[alone]))]
    numbers[alone] = np.arange(len(alone)) % folds
    return numbers


def _place_units(numbers: Ints, rows: Ints, unit_N: Ints, strata_N: Ints, places_U: UInt64s, folds: int) -> None:
    """Set the folds of the rows, of units of two rows or more."""
    totals_K = np.maximum(np.bincount(strata_N, minlength=1), 1)
    held_FK = np.zeros((folds, len(totals_K)))
    rows = rows[np.argsort(unit_N[rows], kind="stable")]
    units = np.split(rows, np.flatnonzero(np.diff(unit_N[rows])) + 1) if len(rows) else []
    for unit in sorted(units, key=lambda unit: (-len(unit), int(places_U[unit_N[unit[0]]]))):
        strata, counts = np.unique(strata_N[unit], return_counts=True)
        grown_F = held_FK[:, strata] @ (counts / totals_K[strata])
        number = int(np.lexsort((held_FK.sum(1), np.round(grown_F, 9)))[0])
        numbers[unit] = number
        held_FK[number, strata] += counts


def _unit_hashes(rows: pa.Table) -> UInt64s:
    """Of each row's group, or of its own name: uint64[N]."""
    groups = pc.dictionary_encode(rows["group"].combine_chunks())
    digests = [
        hashlib.blake2b(f"group/{name}".encode(), digest_size=8).digest() for name in groups.dictionary.to_pylist()
    ]
    by_group = np.array([int.from_bytes(digest, "little") for digest in digests] or [0], np.uint64)
    own = rows["key_hash"].to_numpy().astype(np.uint64)
    grouped = np.asarray(pc.is_valid(groups.indices))
    return np.asarray(np.where(grouped, by_group[np.asarray(groups.indices.fill_null(0))], own))


def _strata(rows: pa.Table, kind: Kind) -> Ints:
    """The class of each row, int64[N]: of several the rarest; 0 for all where there are none."""
    if kind == "class":
        return np.asarray(rows["label"].to_numpy(), np.int64)
    if kind == "number":
        return np.zeros(len(rows), np.int64)
    lists = rows["labels"].combine_chunks()
    labels, lengths = np.asarray(lists.flatten(), np.int64), pc.list_value_length(lists).fill_null(0).to_numpy()
    counts_K = np.bincount(labels, minlength=1)
    row_of = np.repeat(np.arange(len(rows)), lengths)
    order = np.lexsort((labels, counts_K[labels], row_of))
    strata = np.full(len(rows), len(counts_K), np.int64)  # a row without any
    present, firsts = np.unique(row_of[order], return_index=True)
    strata[present] = labels[order][firsts]
    return strata


def _check(rows: pa.Table, index: Index, numbers: Ints, folds: int) -> None:
    where, fix = f"train.folds: {folds}", "use fewer folds, or add images"
    sizes: npt.NDArray[np.int64] = np.bincount(numbers, minlength=folds)
    if not sizes.all():
        what = f"{len(rows)} rows, as they stay together, fill only {np.count_nonzero(sizes)} of {folds} folds"
        raise DataError(what, where=where, fix=fix)
    if index.kind == "number":
        return
    lists = rows["labels"] if index.kind == "classes" else None
    labels = np.asarray(rows["label"] if lists is None else pc.list_flatten(lists), np.int64)
    per_row = 1 if lists is None else pc.list_value_length(lists).fill_null(0).to_numpy()
    pairs = np.unique(np.stack([labels, np.repeat(numbers, per_row)], axis=1), axis=0)
    spread = np.bincount(pairs[:, 0], minlength=len(index.classes))
    if (spread < 2).any():
        few = [index.classes[label] for label in np.flatnonzero(spread < 2)]
        named = ", ".join(few[:_NAMED]) + (", ..." if len(few) > _NAMED else "")
        raise DataError(f"classes with all images in one fold: {named}", where=where, fix="add images of them")
