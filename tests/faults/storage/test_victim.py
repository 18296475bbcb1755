"""Victims die where they are told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycnn.storage import open_store
from raycnn.storage.s3 import S3Store
from tests.faults.kit import victim
from tests.faults.kit.proxy import Proxy


def write_two(uri: str) -> None:
    store = open_store(uri)
    store.put("a/first", b"1")
    store.put("a/second", b"2")


def keys(uri: str) -> list[str]:
    return [entry.key for entry in open_store(uri).list()]


def test_at_each_request(proxy: Proxy, store: S3Store) -> None:
    assert victim.num_requests(proxy, write_two, f"{store.uri}/whole") == 2
    seen = []
    for number in (1, 2):
        for late in (False, True):
            uri = f"{store.uri}/{number}{late}"
            victim.kill_at_request(proxy, number, late, write_two, uri)
            seen.append(keys(uri))
    assert seen == [[], ["a/first"], ["a/first"], ["a/first", "a/second"]]


def test_at_each_call_that_changes_a_directory(tmp_path: Path) -> None:
    calls = victim.num_calls(tmp_path, write_two, str(tmp_path / "whole"))
    seen = []
    for number in range(1, calls + 1):
        uri = str(tmp_path / str(number))
        victim.kill_at_call(tmp_path, number, write_two, uri)
        seen.append(len(keys(uri)))
    # the folder's open, mkdir twice, open; rename, unlink; open, rename, unlink
    assert seen == [0, 0, 0, 0, 0, 1, 1, 1, 2]


def test_one_that_dies_too_early_is_noticed(proxy: Proxy, store: S3Store, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended before request 3"):
        victim.kill_at_request(proxy, 3, False, write_two, store.uri)
    with pytest.raises(AssertionError):
        victim.kill_at_call(tmp_path, 99, write_two, str(tmp_path))
