from __future__ import annotations

import os
import pickle
import random
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import pyarrow.fs
import pytest
from botocore import exceptions as aws

from raycnn.demo.server import ObjectServer
from raycnn.errors import ObjectNotFound, PreconditionFailed, RaycnnError, StorageError
from raycnn.storage import Store, open_store, s3
from raycnn.storage.aws import client
from raycnn.storage.s3 import S3Store

KEYS = ("a", "a-b", "a/b", "a/b/c", "a/é ?#%+.png", "z/y/x")


@pytest.fixture
def store(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/some/prefix", deadline_s=20)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RaycnnError as error:
        return type(error)


def filled(store: Store) -> list[str]:
    # SeaweedFS goes on showing a folder for a while after its last object went
    return [name for name in store.folders() if next(store.list(f"{name}/"), None)]


def step(store: Store, etags: dict[str, str], seed: int, source: Path) -> Any:
    """One random operation, told in a form that does not depend on the kind of store."""
    draw = random.Random(seed)
    key, data = draw.choice(KEYS), draw.randbytes(draw.choice([0, 1, 20]))

    def write(**condition: Any) -> str:
        etags[key] = store.put(key, data, **condition)
        return "written"

    def write_file() -> str:
        source.write_bytes(data)
        etags[key] = store.put_file(key, source, create_only=draw.random() < 0.5)
        return "written"

    offset, length = draw.randrange(25), draw.choice([None, 0, 5, 50])
    prefix = draw.choice(["", "a", "a/", "a/b", "z/", "nothing"])
    actions: list[Callable[[], Any]] = [
        write,
        lambda: write(create_only=True),
        lambda: write(if_etag=etags.get(key, "0-0")),
        write_file,
        lambda: store.get(key),
        lambda: store.get(key, offset, length) if length != 0 else b"",
        lambda: (store.stat(key).size, store.stat(key).etag == etags[key]),
        lambda: sorted((e.key, e.size, e.etag == etags[e.key]) for e in store.list(prefix)),
        lambda: filled(store.child(prefix.strip("/")) if prefix else store),
        lambda: store.delete([key, "never/there"]),
        lambda: [entry.key for entry in store.child("a").list()],
    ]
    return outcome(draw.choice(actions))


def test_s3_and_a_directory_are_one_thing(store: Store, tmp_path: Path) -> None:
    local = open_store(str(tmp_path / "root"))
    tags: tuple[dict[str, str], dict[str, str]] = ({}, {})
    skipped = {"a", "a/b"}  # S3 alone can hold a key and keys below it
    seen = set()
    for seed in range(400):
        if random.Random(seed).choice(KEYS) in skipped:
            continue
        there, here = step(store, tags[0], seed, tmp_path / "s"), step(local, tags[1], seed, tmp_path / "s")
        assert there == here, f"seed {seed}"
        seen.add(str(there)[:12])
    assert len(seen) > 15


def test_many_pages(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"{number // 10:03d}/{number:04d}", b"x"), range(1050)))
    assert [entry.key[-4:] for entry in store.list()] == [f"{number:04d}" for number in range(1050)]
    assert store.folders() == [f"{number:03d}" for number in range(105)]


def test_folder_markers_are_not_objects(store: S3Store) -> None:
    client().put_object(Bucket=store.bucket, Key="some/prefix/cat/", Body=b"")
    store.put("cat/1.png", b"x")
    assert [entry.key for entry in store.list()] == ["cat/1.png"]


def test_pyarrow_sees_the_same_objects(store: S3Store) -> None:
    store.put("a/b.bin", b"0123456789")
    filesystem, path = pyarrow.fs.FileSystem.from_uri(f"s3://{store.bucket}/some/prefix/a/b.bin")
    with filesystem.open_input_file(path) as file:
        assert file.read() == b"0123456789"


def test_concurrent_swaps_lose_no_update(store: Store) -> None:
    store.put("count", b"0")

    def add(_: int) -> None:
        while True:
            etag = store.stat("count").etag
            try:
                store.put("count", b"%d" % (int(store.get("count")) + 1), if_etag=etag)
                return
            except PreconditionFailed:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    assert store.get("count") == b"20"


def test_one_of_many_creators_wins(store: Store) -> None:
    gate = threading.Barrier(8)

    def create(number: int) -> int:
        gate.wait()
        return outcome(lambda: store.put("a", b"%d" % number, create_only=True)) is not PreconditionFailed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


class Lossy:
    """The real client, whose first requests of one kind get lost, or else only the answers to them."""

    def __init__(self, operation: str, losses: int, *, error: Exception | None = None) -> None:
        self._real, self._operation, self._losses, self._error = client(), operation, losses, error

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name != self._operation:
            return real

        def request(**arguments: Any) -> Any:
            if not self._losses:
                return real(**arguments)
            self._losses -= 1
            if self._error is None:
                real(**arguments)
            raise self._error or aws.ConnectionClosedError(endpoint_url="")

        return request


def test_a_lost_answer_to_ones_own_write_is_success(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = store.put("swapped", b"old")
    lossy = Lossy("put_object", losses=2)
    monkeypatch.setattr(s3, "client", lambda silence_s: lossy)
    assert store.put("a", b"mine", create_only=True) == store.stat("a").etag
    lossy = Lossy("put_object", losses=1)
    assert store.put("swapped", b"new", if_etag=old) == store.stat("swapped").etag


def test_another_writer_after_a_lost_request_is_a_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", b"theirs")
    lossy = Lossy("put_object", losses=1, error=aws.ConnectionClosedError(endpoint_url=""))
    monkeypatch.setattr(s3, "client", lambda silence_s: lossy)
    with pytest.raises(PreconditionFailed):
        store.put("a", b"mine", create_only=True)
    assert store.get("a") == b"theirs"


def test_the_same_content_by_another_writer_is_a_conflict_too(store: Store) -> None:
    store.put("a", b"same")
    with pytest.raises(PreconditionFailed):
        store.put("a", b"same", create_only=True)


def test_a_swap_of_a_missing_key_is_a_conflict(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PreconditionFailed):
        store.put("missing", b"", if_etag="0")
    response: Any = {"Error": {"Code": "NoSuchKey"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    lossy = Lossy("put_object", losses=1, error=aws.ClientError(response, "PutObject"))  # as AWS does
    monkeypatch.setattr(s3, "client", lambda silence_s: lossy)
    with pytest.raises(PreconditionFailed):
        store.put("missing", b"", if_etag="0")


def test_large_files_go_up_in_parts(store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 5 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(11 * 2**20))
    lossy = Lossy("complete_multipart_upload", losses=1)
    monkeypatch.setattr(s3, "client", lambda silence_s: lossy)
    assert store.put_file("large", path, create_only=True) == store.stat("large").etag
    assert store.get("large") == path.read_bytes()
    with pytest.raises(PreconditionFailed):
        store.put_file("large", path, create_only=True)
    assert "Uploads" not in client().list_multipart_uploads(Bucket=store.bucket)


def test_parts_of_a_killed_upload_go_with_the_next(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 5 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(bytes(6 * 2**20))
    for key in ("large", "large-other"):
        at = {"Bucket": store.bucket, "Key": f"{store.prefix}/{key}" if store.prefix else key}
        upload = client().create_multipart_upload(**at)["UploadId"]
        client().upload_part(**at, UploadId=upload, PartNumber=1, Body=bytes(5 * 2**20))
    store.put_file("large", path)
    (left,) = client().list_multipart_uploads(Bucket=store.bucket)["Uploads"]
    assert left["Key"].endswith("large-other")
    assert store.get("large") == path.read_bytes()


def test_a_failed_upload_leaves_no_parts(store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 5 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(bytes(11 * 2**20))
    parts = iter(["good", "bad"])
    monkeypatch.setattr(s3, "_sha256", lambda data: sha256(data if next(parts) == "good" else b"other"))
    with pytest.raises(StorageError):
        S3Store(store.bucket, store.prefix, deadline_s=3).put_file("large", path)
    assert next(parts, None) is None
    assert "Uploads" not in client().list_multipart_uploads(Bucket=store.bucket)
    with pytest.raises(ObjectNotFound):
        store.stat("large")


sha256 = s3._sha256


def test_a_damaged_body_is_refused(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_sha256", lambda data: sha256(data + b"x"))
    with pytest.raises(StorageError):
        S3Store(store.bucket, store.prefix, deadline_s=0.5).put("a", b"body")
    with pytest.raises(ObjectNotFound):
        store.stat("a")


def told(error: BaseException) -> str:
    return repr(error) + str(error) + "".join(traceback.format_exception(error))


def test_every_refusal_is_one_clear_line_without_secrets(
    bucket: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"s3://{bucket}", deadline_s=20)
    secrets = [value for name, value in object_server.environment.items() if "KEY" in name]

    def fails(store: Store, words: str) -> None:
        for use in (lambda: store.put("a", b""), lambda: store.get("a"), lambda: list(store.list())):
            with pytest.raises(StorageError, match=words) as caught:
                use()
            assert caught.value.fix
            assert not any(secret in told(caught.value) + repr(store) for secret in secrets)

    fails(open_store("s3://no-such-bucket", deadline_s=20), "bucket does not exist")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", wrong := "wrongwrongwrong")
        secrets.append(wrong)
        fails(store, "access denied: SignatureDoesNotMatch")
        patch.setenv("AWS_ACCESS_KEY_ID", stranger := "strangerstranger")
        secrets.append(stranger)
        fails(store, "access denied: InvalidAccessKeyId")
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        fails(store, "no AWS credentials")
        patch.setenv("AWS_PROFILE", "nobody")
        fails(store, "no AWS credentials")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://me:pass@127.0.0.1:1")
        secrets.append("pass@")
        fails(open_store(store.uri, deadline_s=1), "no answer from 127.0.0.1:1: EndpointConnectionError")
    store.put("a", b"")  # and all is well again


def test_a_wrong_clock_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = botocore.auth.get_current_datetime
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now() - timedelta(hours=2))
    with pytest.raises(StorageError, match="fix the clock"):
        open_store(f"s3://{bucket}").put("a", b"")


def test_stores_travel_without_secrets(store: Store, object_server: ObjectServer) -> None:
    store.put("a", b"x")
    data = pickle.dumps(store)
    assert not any(value.encode() in data for name, value in object_server.environment.items() if "KEY" in name)
    assert pickle.loads(data).get("a") == b"x"


def test_keys_that_leave_the_root_are_refused(store: Store) -> None:
    for use in (store.get, store.stat, lambda key: store.put(key, b""), lambda key: store.delete([key])):
        with pytest.raises(StorageError, match="not a usable key"):
            use("../other")
