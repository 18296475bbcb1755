from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raycnn.data.decode import Limits
from raycnn.data.manifest import (
    QUARANTINE,
    SCHEMA,
    Index,
    content_hash,
    key_hashes,
    read_index,
    summary,
    write_index,
)
from raycnn.errors import CheckpointError, DataError
from raycnn.storage import Store, open_store

ROW: dict[str, Any] = {
    "key": "cat/a.jpg", "offset": 0, "length": 5, "label": 0, "labels": [0], "value": None, "split": "train",
    "group": None, "size": 5, "etag": "tag", "sha256": bytes(32), "key_hash": 2**63, "width": 3, "height": 2,
    "format": "JPEG",
}  # fmt: skip
BAD = {"key": "dog/x", "offset": 0, "length": 1, "reason": "not an image", "label": "dog", "split": "val", "size": 1}


def rows(*changes: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([ROW | change for change in changes], SCHEMA)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def make_index(store: Store, manifest: pa.Table) -> Index:
    hash = content_hash(manifest, "class", ["cat", "dog"])
    return Index(
        hash=hash,
        source="/images",
        path=f"{store.uri}/index/{hash}",
        kind="class",
        classes=("cat", "dog"),
        manifest=manifest,
        quarantine=pa.Table.from_pylist([BAD], QUARANTINE),
        duplicates=[("cat/a.jpg", "dog/b.jpg")],
        conflicts=[],
        limits=Limits(100, 10),
    )


def test_an_index_survives_storage(store: Store) -> None:
    index = make_index(store, rows({}, {"key": "dog/b.jpg", "label": 1, "labels": [1], "split": "val"}))
    write_index(index, store)
    assert read_index(store, index.hash) == index
    some = read_index(store, index.hash, columns=["key", "split"])
    assert some.manifest.column_names == ["key", "split"]
    assert some.rows("val")["key"].to_pylist() == ["dog/b.jpg"]


def test_the_summary_counts(store: Store) -> None:
    index = make_index(store, rows({}, {"split": "val"}, {"labels": [0, 1], "label": -1}))
    assert summary(index) == {
        "rows": 3,
        "classes": {"cat": 3, "dog": 1},
        "splits": {"train": 2, "val": 1, "test": 0},
        "quarantined": [{"key": "dog/x", "reason": "not an image"}],
        "quarantined_by": {"val": {"dog": 1}},
        "duplicates": [["cat/a.jpg", "dog/b.jpg"]],
        "manifest": f"{store.uri}/index/{index.hash}/manifest.parquet",
    }


def test_the_hash_is_of_the_content_alone() -> None:
    hash = content_hash(rows({}), "class", ["cat", "dog"])
    assert content_hash(rows({"etag": "other", "size": 9}), "class", ["cat", "dog"]) == hash
    changed = [
        {"label": 1},
        {"split": "val"},
        {"sha256": bytes(31) + b"x"},
        {"group": "g"},
        {"offset": 1},
        {"key": "b"},
    ]
    assert len({hash, *(content_hash(rows(change), "class", ["cat", "dog"]) for change in changed)}) == 7
    assert content_hash(rows({}), "class", ["cat", "cow"]) != hash
    assert content_hash(pa.concat_tables([rows({}), rows({"key": "b"})]), "class", []) == content_hash(
        rows({}, {"key": "b"}), "class", []
    )


def test_the_hash_of_a_format_never_changes() -> None:
    assert content_hash(rows({}), "class", ["cat", "dog"]).startswith("2a7d2937f7f84c98")


def test_key_hashes_tell_rows_of_one_object_apart() -> None:
    aliases = pa.array([None, None, None, "a"], pa.string())
    table = pa.table({"key": ["a", "a", "b", "b"], "offset": [0, 7, 0, 7], "alias": aliases})
    hashes = key_hashes(table)
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]  # a row is who its alias says
    assert hashes.dtype == "uint64"
    assert hashes[0] == 3405396810240292928  # of b"a", little end first


@pytest.mark.parametrize("file", ["manifest.parquet", "quarantine.parquet"])
def test_a_damaged_or_missing_file_is_an_error(store: Store, file: str) -> None:
    index = make_index(store, rows({}))
    write_index(index, store)
    key = f"index/{index.hash}/{file}"
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(DataError, match="damaged"):
        read_index(store, index.hash)
    store.delete([key])
    with pytest.raises(DataError, match="damaged"):
        read_index(store, index.hash)


def test_no_index_no_json_and_a_newer_format(store: Store) -> None:
    with pytest.raises(DataError, match="no such index"):
        read_index(store, "0" * 64)
    index = make_index(store, rows({}))
    write_index(index, store)
    key = f"index/{index.hash}/index.json"
    facts = json.loads(store.get(key))
    store.put(key, json.dumps(facts | {"format": 2}).encode())
    with pytest.raises(CheckpointError, match="an index of format 2"):
        read_index(store, index.hash)
    store.put(key, b"{")
    with pytest.raises(DataError, match="damaged"):
        read_index(store, index.hash)


def test_an_index_written_again_while_it_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index(store, rows({}))
    write_index(index, store)
    renewed = dataclasses.replace(index, quarantine=QUARANTINE.empty_table())
    get, calls = type(store).get, []

    def interrupted(self: Store, key: str, *args: Any) -> bytes:
        data = get(self, key, *args)
        if not calls:
            calls.append(key)
            write_index(renewed, store)
        return data

    monkeypatch.setattr(type(store), "get", interrupted)
    assert read_index(store, index.hash) == renewed
