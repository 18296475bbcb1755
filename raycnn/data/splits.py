"""Which rows train, which validate, which test: by hash, so that adding images moves nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
TRAIN, VAL, TEST, UNKNOWN = 0, 1, 2, -1


def split_rows(
    units: Sequence[str],
    given: Ints,
    strata: Ints | None,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> Ints:
    """The split of each row: TRAIN, VAL or TEST.

    A row goes where the hash of its unit and the seed falls in [0, 1): test below test_fraction, val below
    test_fraction + val_fraction, else train. Where the source gives splits they stand; one that gives no val at
    all has val_fraction of its train rows taken for it.

    Args:
        units: what stays together: the row's group, or its own name.
        given: the source's split of each row, or UNKNOWN.
        strata: classes within which the units are ranked by their hash and cut at the fractions, so that each class
            has its share; None: no ranking.
        val_fraction, test_fraction, seed: of the config.
    """
    names, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    places = np.array([_place(name, seed) for name in names])
    splits = given.copy()
    free = given == UNKNOWN
    if free.any():
        share = _shares(places, unit_of[free], None if strata is None else strata[free])
        splits[free] = np.where(share < test_fraction, TEST, np.where(share < test_fraction + val_fraction, VAL, TRAIN))
    elif not (given == VAL).any():
        train = given == TRAIN
        share = _shares(places, unit_of[train], None if strata is None else strata[train])
        splits[train] = np.where(share < val_fraction, VAL, TRAIN)
    return splits


def join_duplicates(
    splits: Ints, units: Sequence[str], given: Ints, hashes: npt.NDArray[np.uint64], same: Sequence[Ints]
) -> Ints:
    """`splits` with all rows of the same bytes, and the units they belong to, in one split.

    The row whose split holds for all is one that the source gave to train, else to val, else to test, else any; and
    among several the one with the smallest hash.

    Args:
        splits, units, given: as of `split_rows`.
        hashes: the rows' key hashes.
        same: row numbers of each set of rows with equal bytes.
    """
    _, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    joined = joined_units(unit_of, same)
    affected = np.flatnonzero(np.isin(joined, joined[np.concatenate([*same, np.array([], np.int64)])]))
    rank = np.where(given == UNKNOWN, TEST + 1, given)
    order = affected[np.lexsort((hashes[affected], rank[affected], joined[affected]))]
    _, firsts, which = np.unique(joined[order], return_index=True, return_inverse=True)
    settled = splits.copy()
    settled[order] = splits[order[firsts]][which]
    return settled


def joined_units(unit_of: Ints, same: Sequence[Ints]) -> Ints:
    """The unit of each row after those that hold rows of the same bytes have become one, int64[N].

    Args:
        unit_of: units before, from 0.
        same: row numbers of each set of rows with equal bytes.
    """
    parent = np.arange(unit_of.max(initial=-1) + 1)

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = unit = parent[parent[unit]]
        return unit

    for rows in same:
        for row in rows[1:]:
            parent[root(unit_of[row])] = root(unit_of[rows[0]])
    return np.array([root(unit) for unit in range(len(parent))], np.int64)[unit_of]


def equal_rows(digests: Sequence[bytes]) -> list[Ints]:
    """Row numbers of each set of rows, two or more, with the same digest."""
    _, codes, counts = np.unique(np.asarray(digests, "S32"), return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[codes] > 1)
    order = repeated[np.argsort(codes[repeated], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []


def _place(name: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _shares(places: npt.NDArray[np.float64], unit_of: Ints, strata: Ints | None) -> npt.NDArray[np.float64]:
    """Where each row stands in [0, 1): its unit's hash, or the middle of its unit's rank within the stratum."""
    if strata is None:
        return places[unit_of]
    sizes = np.bincount(unit_of, minlength=len(places))
    stratum = np.full(len(places), np.iinfo(np.int64).max)
    np.minimum.at(stratum, unit_of, strata)  # a group of several classes counts for the first
    order = np.lexsort((places, stratum))
    middles = np.cumsum(sizes[order]) - sizes[order] / 2
    _, firsts, which = np.unique(stratum[order], return_index=True, return_inverse=True)
    totals = np.add.reduceat(sizes[order], firsts)
    before = np.cumsum(totals) - totals
    shares = np.empty(len(places))
    shares[order] = (middles - before[which]) / np.maximum(totals[which], 1)
    return shares[unit_of]
