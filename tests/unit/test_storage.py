from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from botocore import exceptions as aws

from raycnn.errors import ConfigError, ObjectNotFound, PreconditionFailed, StorageError
from raycnn.storage import open_images, open_store
from raycnn.storage.arrow import ArrowReader
from raycnn.storage.aws import failure, passing

SECRET = "tOpSeCrEt0123456789"


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("s3://my-bucket/a/b/", "s3://my-bucket/a/b"),
        ("s3://my-bucket", "s3://my-bucket"),
        ("S3://my-bucket/odd ?#%20 name", "s3://my-bucket/odd ?#%20 name"),
        ("/data/x/", "/data/x"),
        ("file:///data/with%20space", "/data/with space"),
    ],
)
def test_uris_have_one_form(uri: str, canonical: str) -> None:
    assert open_store(uri).uri == open_images(uri).uri == canonical


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert open_store("runs").uri == str(tmp_path / "runs")
    assert open_store("~/runs").uri == "/home/somebody/runs"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3://Not_A_Bucket/x",
        "https://example.org/x",
        "gs://bucket/x",
        "a\0b",
        f"s3://key:{SECRET}@bucket/x",
        f"ftp://me:{SECRET}@host/x?sig={SECRET}",
    ],
)
def test_unusable_uris_are_refused_without_echoing_secrets(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert caught.value.fix
    assert SECRET not in told(caught.value)


@pytest.mark.parametrize("uri", ["nonsense://x/y", f"abfs://c:{SECRET}@h/x", f"nonsense://x/y?sas={SECRET}"])
def test_images_of_unknown_schemes_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_images(uri)
    assert SECRET not in told(caught.value)


def test_other_schemes_read_as_a_store_does(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "root"))
    for key in ("cat/b.png", "cat/a.png", "cat-food/x", "top", "dog/deep/y"):
        store.put(key, key.encode())
    for reader, local in (
        (ArrowReader(f"file://{tmp_path}/root"), store),
        (ArrowReader(f"file://{tmp_path}").child("root"), store),
        (ArrowReader(f"file://{tmp_path}/root/").child("cat"), store.child("cat")),
    ):
        for prefix in ("", "cat", "cat/", "dog/d", "nothing/"):
            found = [(entry.key, entry.size) for entry in reader.list(prefix)]
            assert found == [(entry.key, entry.size) for entry in local.list(prefix)]
        assert reader.folders() == local.folders()
    reader = pickle.loads(pickle.dumps(ArrowReader(f"file://{tmp_path}/root")))
    assert reader.folders("dog") == ["deep"]
    assert reader.get("top") == b"top"
    assert (reader.get("top", 1), reader.get("top", 1, 1), reader.get("top", 9, 1)) == (b"op", b"o", b"")
    assert reader.stat("top").size == 3
    for key in ("nothing", "cat"):
        with pytest.raises(ObjectNotFound):
            reader.stat(key)
    with pytest.raises(ObjectNotFound):
        reader.get("nothing")


def test_other_schemes_hide_their_settings() -> None:
    reader = open_images(f"gs://anonymous@bucket/x?endpoint_override={SECRET}.example&retry_limit_seconds=1")
    assert reader.child("y").uri == "gs://bucket/x/y"
    assert SECRET not in repr(reader)


def refusal(status: int, code: str) -> aws.ClientError:
    response = {"Error": {"Code": code, "Message": SECRET}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return aws.ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (refusal(404, "NoSuchKey"), ObjectNotFound, "no such object"),
        (refusal(404, "404"), ObjectNotFound, "no such object"),
        (refusal(404, "NoSuchBucket"), StorageError, "bucket does not exist"),
        (refusal(412, "PreconditionFailed"), PreconditionFailed, "expected state"),
        (refusal(409, "ConditionalRequestConflict"), PreconditionFailed, "expected state"),
        (refusal(403, "AccessDenied"), StorageError, "access denied: AccessDenied"),
        (refusal(403, "RequestTimeTooSkewed"), StorageError, "fix the clock"),
        (refusal(400, "ExpiredToken"), StorageError, "expired"),
        (refusal(503, "SlowDown"), StorageError, "answered 503 SlowDown"),
        (aws.NoCredentialsError(), StorageError, "no AWS credentials"),
        (aws.ProfileNotFound(profile="x"), StorageError, "no AWS credentials"),
        (aws.ReadTimeoutError(endpoint_url=SECRET), StorageError, "no answer from .*: ReadTimeoutError"),
        (ConnectionResetError(SECRET), StorageError, "no answer from .*: ConnectionResetError"),
        (aws.ParamValidationError(report=SECRET), StorageError, "cannot be sent: ParamValidationError"),
    ],
)
def test_failures_of_s3_have_their_own_line(error: Exception, kind: type, words: str) -> None:
    told_as = failure(error, "s3://bucket/key")
    assert type(told_as) is kind
    with pytest.raises(kind, match=words):
        raise told_as
    assert "s3://bucket/key" in str(told_as)
    assert told_as.fix
    assert SECRET not in told(told_as)


def test_which_failures_of_s3_pass() -> None:
    waits = (aws.ConnectionClosedError, aws.ReadTimeoutError, aws.EndpointConnectionError)
    assert all(passing(kind(endpoint_url="")) for kind in waits)
    assert passing(aws.IncompleteReadError(actual_bytes=1, expected_bytes=2))
    assert passing(refusal(500, "InternalError"))
    assert not passing(refusal(403, "AccessDenied"))
    assert not passing(aws.NoCredentialsError())
    assert not passing(ValueError())


def test_opening_a_store_imports_nothing_heavy() -> None:
    code = (
        "import sys, raycnn.storage.keeper as k; k.open_store('s3://bucket/x'); k.open_store('/tmp')\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def told(error: BaseException) -> str:
    return repr(error) + str(error) + "".join(traceback.format_exception(error))
