from __future__ import annotations

import hashlib

import numpy as np
import pytest

from raycnn.data.splits import TEST, TRAIN, UNKNOWN, VAL, equal_rows, join_duplicates, split_rows

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.1, "seed": 3}


def names(count: int) -> list[str]:
    return [f"image-{number}" for number in range(count)]


def unknown(count: int) -> np.ndarray:
    return np.full(count, UNKNOWN)


def test_the_split_is_the_hash_of_name_and_seed() -> None:
    splits = split_rows(names(200), unknown(200), None, **FRACTIONS)
    for name, split in zip(names(200), splits, strict=True):
        digest = hashlib.blake2b(f"3/{name}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "little") / 2**64
        assert split == (TEST if place < 0.1 else VAL if place < 0.3 else TRAIN)
    assert not np.array_equal(splits, split_rows(names(200), unknown(200), None, **{**FRACTIONS, "seed": 4}))


def test_more_images_move_nobody() -> None:
    few = split_rows(names(100), unknown(100), None, **FRACTIONS)
    assert np.array_equal(split_rows(names(1000), unknown(1000), None, **FRACTIONS)[:100], few)


def test_the_order_of_the_rows_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(300)
    strata = np.arange(300) % 3
    shuffled = [names(300)[place] for place in order]
    for given in (None, strata):
        splits = split_rows(names(300), unknown(300), given, **FRACTIONS)
        again = split_rows(shuffled, unknown(300), None if given is None else given[order], **FRACTIONS)
        assert np.array_equal(again, splits[order])


def test_strata_have_their_share_each() -> None:
    strata = np.array([0] * 100 + [1] * 20 + [2] * 10)
    splits = split_rows(names(130), unknown(130), strata, **FRACTIONS)
    for stratum, size in enumerate((100, 20, 10)):
        counts = np.bincount(splits[strata == stratum], minlength=3)
        assert list(counts) == [size * 7 // 10, size * 2 // 10, size // 10]


def test_groups_stay_together() -> None:
    groups = [f"patient-{number // 7}" for number in range(700)]
    strata = np.arange(700) % 2
    for given in (None, strata):
        splits = split_rows(groups, unknown(700), given, **FRACTIONS)
        assert all(len(set(splits[start : start + 7])) == 1 for start in range(0, 700, 7))
        assert np.bincount(splits)[VAL] == pytest.approx(140, abs=60)


def test_the_sources_split_stands_and_gives_its_val_from_train() -> None:
    given = np.array([TRAIN, VAL, TEST] * 30)
    assert np.array_equal(split_rows(names(90), given, None, **FRACTIONS), given)
    given = np.array([TRAIN, TEST] * 100)
    splits = split_rows(names(200), given, np.zeros(200, int), **FRACTIONS)
    assert np.array_equal(splits == TEST, given == TEST)
    assert (splits == VAL).sum() == 20


def test_rows_the_source_says_nothing_of_are_split_by_hash() -> None:
    given = unknown(100)
    given[:50] = TRAIN
    splits = split_rows(names(100), given, None, **FRACTIONS)
    assert set(splits[:50]) == {TRAIN}
    assert np.array_equal(splits[50:], split_rows(names(100), unknown(100), None, **FRACTIONS)[50:])


def test_duplicates_follow_the_smallest_hash() -> None:
    splits = np.array([TRAIN, VAL, TEST, TRAIN])
    hashes = np.array([9, 5, 7, 1], np.uint64)
    joined = join_duplicates(splits, names(4), unknown(4), hashes, [np.array([0, 1, 2])])
    assert list(joined) == [VAL, VAL, VAL, TRAIN]


def test_duplicates_follow_train_then_val_where_the_source_splits() -> None:
    given = np.array([TEST, VAL, TRAIN, TEST, VAL])
    hashes = np.arange(5, dtype=np.uint64)
    joined = join_duplicates(given, names(5), given, hashes, [np.array([0, 1, 2]), np.array([3, 4])])
    assert list(joined) == [TRAIN, TRAIN, TRAIN, VAL, VAL]


def test_duplicates_take_their_groups_along() -> None:
    units = ["a", "a", "b", "b", "c"]
    splits = np.array([TRAIN, TRAIN, TEST, TEST, VAL])
    hashes = np.array([5, 4, 3, 2, 1], np.uint64)
    joined = join_duplicates(splits, units, unknown(5), hashes, [np.array([0, 2])])
    assert list(joined) == [TEST, TEST, TEST, TEST, VAL]


def test_without_duplicates_nothing_moves() -> None:
    splits = np.array([TRAIN, VAL])
    assert np.array_equal(join_duplicates(splits, names(2), unknown(2), np.zeros(2, np.uint64), []), splits)


def test_equal_rows_are_found_by_digest() -> None:
    digests = [hashlib.sha256(text).digest() for text in (b"a", b"b", b"a", b"c", b"b", b"a")]
    assert sorted(map(list, equal_rows(digests))) == [[0, 2, 5], [1, 4]]
    assert equal_rows(digests[:2]) == equal_rows([]) == []
