from __future__ import annotations

import logging
import string
from typing import Any

import obstore
import pytest

from raycnn.errors import ObjectNotFound, StorageError
from raycnn.storage import Store, images, open_images, open_store
from raycnn.storage.base import Reader
from raycnn.storage.s3 import S3Store

CHARACTERS = [*(set(string.printable) - set("/" + string.whitespace)), " ", "é", "日", "%20", "%2F", "..x"]


@pytest.fixture
def store(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/some/prefix", deadline_s=20)


@pytest.fixture
def reader(store: Store) -> Reader:
    images._door.cache_clear()
    return open_images(store.uri)


@pytest.fixture
def by_boto3(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that boto3 reads."""
    keys: list[str] = []
    get = S3Store.get

    def noted(self: S3Store, key: str, *place: Any) -> bytes:
        keys.append(key)
        return get(self, key, *place)

    monkeypatch.setattr(S3Store, "get", noted)
    return keys


def test_objects_of_every_name_are_read_without_boto3(store: Store, reader: Reader, by_boto3: list[str]) -> None:
    for character in CHARACTERS:
        key = f"d{character}/x{character}y.jpg"
        store.put(key, key.encode())
        assert reader.get(key) == key.encode()
        assert reader.get(key, 1, 3) == key.encode()[1:4]
        assert reader.child(f"d{character}").get(f"x{character}y.jpg", 2, 100) == key.encode()[2:]
    assert by_boto3 == []


def test_what_does_not_come_is_asked_for_again(store: Store, reader: Reader, by_boto3: list[str]) -> None:
    store.put("k", b"0123456789")
    assert [reader.get("k", *place) for place in ((10, 5), (3, None), (4, 0))] == [b"", b"3456789", b""]
    with pytest.raises(ObjectNotFound, match="some/prefix/none"):
        reader.get("none")
    assert by_boto3 == ["k", "k", "k", "none"]


def test_a_client_that_never_gets_anything_is_left_alone(
    store: Store, reader: Reader, by_boto3: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fails(_: Any, key: str) -> Any:
        asked.append(key)
        raise PermissionError(key)

    monkeypatch.setattr(obstore, "get", fails)
    store.put("k", b"data")
    with caplog.at_level(logging.WARNING):
        assert [reader.get("k") for _ in range(5)] == [b"data"] * 5
    assert len(asked) == 3
    assert caplog.messages == ["images are read by boto3, which is slower: PermissionError"]


def test_without_credentials_the_error_is_ours(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no AWS credentials"):
        reader.get("k")


def test_credentials_are_those_of_the_environment_now(
    store: Store, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("k", b"data")
    assert reader.get("k") == b"data"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="access denied"):
        reader.get("k")
